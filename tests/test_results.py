"""`make results`: what it runs and in which order, and its table."""

import json
import math
import shlex
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from matplotlib.image import imread
from safetensors.torch import load_file

from data_modules.choices import ChoicesSource, WindowChoices, write_choices
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_run, write_run
from lit_rerank import Reranker
from lit_rerank.as_trained import load_prompt_settings, load_reading, save_settings
from lit_rerank.comparison.systems import System
from lit_rerank.comparison.windows import read_windows
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.evaluation.rerank import in_first_stage_order
from lit_rerank.intervals import student_interval
from lit_rerank.measurement import Answered, Read, Retention
from lit_rerank.reading import SlidingWindow, Twice
from scripts import (
    check_results,
    learning,
    measured,
    pictures,
    recipes,
    results,
    ship_adapter,
    summary,
    tables,
    trained,
)
from scripts.rows import COLUMNS, LISTS, MODEL, ROWS, TWICE, Mean, Training
from tests.references import save_adapter
from tests.test_evaluation import rerank, write_candidates

FIGURES = {"mean": 0.5, "interval": [0.4, 0.6]}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """The commands that would train and measure; each leaves the figures that it was asked for."""
    asked: list[list[str]] = []

    class Done:
        returncode = 0

        def __init__(self, words: list[str], **_: object) -> None:
            asked.append(words[1:])
            if "average" in words:
                Path(words[words.index("--out") + 1]).mkdir(parents=True)
            elif "--metrics" in words:
                metrics = Path(words[words.index("--metrics") + 1])
                metrics.parent.mkdir(parents=True, exist_ok=True)
                metrics.write_text("{}")
            else:
                option = next(word for word in words if word.startswith("--trainer.default_root_dir="))
                Path(option.partition("=")[2]).mkdir(parents=True, exist_ok=True)

    def so_far() -> list[list[str]]:
        found = [*asked]
        asked.clear()
        return found

    monkeypatch.setattr("scripts.recipes.subprocess.run", Done)
    return so_far


def test_a_row_is_trained_after_what_it_starts_from_and_made_once(
    commands: Callable[[], list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS["dpo"]
    monkeypatch.setattr(measured, "before_again", lambda twice, slid, qrels: Path(f"{slid}.json").touch())
    assert row.training is not None
    trained.train(row.training, Path("lists"), tmp_path)
    measured.measure("dpo", row, Path("lists"), Path("mmlu"), tmp_path)
    fits, evaluations = [], []
    for words in commands():
        (fits if words[0] == "train.py" else evaluations).append(words)
    recipes = [next(w for w in words if "recipes/" in w) for words in fits]
    assert [Path(recipe).stem for recipe in recipes] == ["trecdl.pointing", *["trecdl.sft"] * 3, "trecdl.dpo"]
    assert all("configs/recipes/trecdl.lists.yaml" in words for words in fits[2:4])
    watched = "--data.init_args.val.init_args.path=lists/dl21.bm25.top100.jsonl.gz"
    assert [watched in words for words in fits] == [False, True, True, True, False]
    assert [set(trained.processes()) <= set(words) for words in fits] == [False, True, True, True, True]
    for words, start, data in zip(
        fits[2:], ("chain_asked", "chain_asked", "chain"), ("lists", "orders", "orders"), strict=True
    ):
        assert f"--model.init_args.backbone.adapter={tmp_path}/{start}/adapter" in words
        assert f"--data.init_args.train.init_args.path={tmp_path}/data/{data}.jsonl.gz" in words
    parts = [f"{tmp_path}/{part}/adapter" for part in ("chain_lists", "chain_orders")]
    assert evaluations.pop(0) == ["evaluate.py", "average", *parts, "--out", f"{tmp_path}/chain/adapter"]
    assert [words[1] for words in evaluations] == ["rerank"] * 4 + ["mmlu"] * 2
    reading = {"--window": "8", "--stride": "4", "--rounds": "4"}
    assert all(reading.items() <= dict(pairwise(words)).items() for words in evaluations[:4])
    base, own = evaluations[-2:]  # what is known is compared with what the base knows
    assert "--adapter" not in base
    known = Path(base[base.index("--metrics") + 1]).with_suffix(".details.jsonl")
    assert own[own.index("--against") + 1] == str(known)
    assert all(f"{tmp_path}/dpo/adapter" in words for words in [*evaluations[:4], own])
    trained.train(row.training, Path("lists"), tmp_path)
    measured.measure("dpo", row, Path("lists"), Path("mmlu"), tmp_path)
    assert not commands()
    shutil.rmtree(tmp_path / "dpo")  # so it is trained anew, and what was measured is of another adapter
    trained.train(row.training, Path("lists"), tmp_path)
    assert not (tmp_path / "measured" / "dpo").exists()
    assert (tmp_path / "measured" / "dpo.earlier" / "mmlu.json").exists()
    assert (tmp_path / "measured" / "base").exists()


def test_a_row_may_read_other_windows_of_one_list_alone(
    commands: Callable[[], list[list[str]]], tmp_path: Path
) -> None:
    measured.measure("windows_of_4", ROWS["windows_of_4"], Path("lists"), Path("mmlu"), tmp_path)
    (words,) = commands()
    assert {"--window": "4", "--stride": "2", "--depth": "20"}.items() <= dict(pairwise(words)).items()
    assert "lists/dl21.bm25.top100.jsonl.gz" in words
    assert f"{tmp_path}/chain/adapter" in words


def test_the_commands_that_are_written_down_are_those_that_are_run(
    commands: Callable[[], list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two cores that are slow at bfloat16, as those were that the figures are from."""
    for module in (recipes, measured):
        monkeypatch.setattr(module, "dtype", lambda: "float32")
    monkeypatch.setattr(trained, "pays_to_compile", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measured, "before_again", lambda twice, slid, qrels: Path(f"{slid}.json").touch())
    written = (Path(__file__).parents[1] / "results" / "commands.sh").read_text().splitlines()
    monkeypatch.chdir(tmp_path)
    for name in ("base", "likelihood", "direct", "chain", "dpo"):
        if (training := ROWS[name].training) is not None:
            trained.train(training, Path("LISTS"), Path("runs/results"))
        measured.measure(name, ROWS[name], Path("LISTS"), Path("MMLU"), Path("runs/results"))
    run = [f"python {shlex.join(words)}" for words in commands()]
    assert [line for line in written if line and not line.startswith("#")] == run


def test_what_was_made_of_something_else_is_noticed(
    commands: Callable[[], list[list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pointing = trained.data_of("pointing", tmp_path)
    pointing.parent.mkdir()
    pointing.write_text("old")
    trained.train("pointing", Path("lists"), tmp_path)
    trained.train("pointing", Path("lists"), tmp_path)
    assert "was made of" not in capsys.readouterr().out
    pointing.write_text("new")
    trained.train("pointing", Path("lists"), tmp_path)
    assert f"{tmp_path}/pointing was made of other data: it is kept" in capsys.readouterr().out
    (tmp_path / "pointing" / "complete").unlink()
    with pytest.raises(UserError, match="pointing was stopped, and was made of other data: to train it anew"):
        trained.train("pointing", Path("lists"), tmp_path)
    monkeypatch.setitem(trained.TRAININGS, "pointing", Training("trecdl.pointing", None, ("--seed=1",), "pointing"))
    assert trained.different("pointing", tmp_path) == "other options and other data"
    (tmp_path / "pointing" / trained.MADE_OF).unlink()
    assert trained.different("pointing", tmp_path) == "what is not known"
    assert trained.different("chain", tmp_path) == ""
    assert len(commands()) == 1


def test_a_mean_of_others_is_noticed(
    commands: Callable[[], list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.train("chain", Path("lists"), tmp_path)
    assert trained.different("chain", tmp_path) == ""
    weights = tmp_path / "chain_orders" / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"trained anew")
    assert trained.different("chain", tmp_path) == "other weights of chain_orders"
    weights.unlink()
    monkeypatch.setitem(trained.TRAININGS, "chain", Mean(("chain_lists",)))
    assert trained.different("chain", tmp_path) == "other options"
    monkeypatch.setitem(trained.TRAININGS, "chain", Training("trecdl.lists", "chain_asked", data="lists"))
    assert "other recipe and other options" in trained.different("chain", tmp_path)


def test_curves_begin_where_what_they_start_from_ended(tmp_path: Path) -> None:
    for name, tokens in {"pointing": 10.0, "chain_asked": 100.0, "chain_lists": 1.0, "chain_orders": 112.0}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("trainer: {devices: 2}")
        row = {"step": 0, "train/tokens": tokens}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / name / "complete").touch()
    names = ("pointing", "chain_asked", "chain_lists", "dpo")
    assert [learning.read_before(name, tmp_path) for name in names] == [0, 20, 220, 222 + 224]
    (tmp_path / "chain_asked" / "metrics.jsonl").unlink()  # an adapter that came without its training
    assert math.isnan(learning.read_before("chain_lists", tmp_path))


def test_what_measuring_needs_is_named_before_any_work(tmp_path: Path) -> None:
    for name in ("dl21.bm25.top100.jsonl.gz", "dl21.splade_pp_ed.top100.jsonl.gz", "qrels.dl21.txt"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            measured.check_measurable(tmp_path, tmp_path)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"test_20_per_subject\.jsonl\.gz does not exist"):
        measured.check_measurable(tmp_path, tmp_path)


def test_the_base_has_no_adapter_and_likelihood_reads_a_list_at_once(
    commands: Callable[[], list[list[str]]], tmp_path: Path
) -> None:
    for name in ("base", "likelihood"):
        measured.measure(name, ROWS[name], Path("lists"), Path("mmlu"), tmp_path)
    words = commands()
    assert not any("--adapter" in line for line in words)
    deep = next(line for line in words if "likelihood" in line and line[line.index("--depth") + 1] == "100")
    assert deep[deep.index("--window") + 1] == "100"


def test_rows_wait_only_for_what_they_learn_from(tmp_path: Path) -> None:
    assert results.learned_from(["base", "likelihood"], tmp_path) == []
    data, replay = tmp_path / "data", tmp_path / "data" / "self_taught" / "replay.jsonl.gz"
    found = results.learned_from(["chain_lists"], tmp_path)
    assert {*found} == {*(data / f"{name}.jsonl.gz" for name in ("pointing", "train", "lists")), replay}


def test_each_row_has_its_target() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    (line,) = [line for line in makefile.splitlines() if line.startswith("RESULTS :=")]
    assert set(line.partition("results-,")[2].rstrip(")").split()) == ROWS.keys()


def test_what_sliding_had_made_of_lists_that_were_read_twice(tiny_model: Path, tmp_path: Path) -> None:
    """Its upper 20 are those of sliding alone, for which nothing is read again."""
    candidates = write_candidates(tmp_path / "c.jsonl", passages=26)
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q0 0 d3 1\nq1 0 d1 1\n")

    def files(name: str, *options: str) -> Path:
        choices = tmp_path / f"{name}.choices.jsonl.gz"
        rerank(tmp_path, tiny_model, candidates, "--window", "6", "--stride", "3", "--choices", str(choices), *options)
        shutil.copy(tmp_path / "out" / "run.txt", tmp_path / f"{name}.run.txt")
        shutil.copy(tmp_path / "out" / "metrics.json", tmp_path / f"{name}.json")
        return tmp_path / name

    twice, alone = files("twice", "--rounds", "2"), files("alone")
    measured.before_again(twice, tmp_path / "slid", qrels)
    found, expected = (read_run(f"{path}.run.txt") for path in (tmp_path / "slid", alone))
    for qid, ranking in expected.items():
        assert [docid for docid, _ in found[qid][:20]] == [docid for docid, _ in ranking[:20]]
        assert {docid for docid, _ in found[qid]} == {docid for docid, _ in ranking}
    figures = json.loads((tmp_path / "slid.json").read_text())
    assert figures["windows"] == len(list(ChoicesSource(f"{alone}.choices.jsonl.gz")))
    assert (figures["queries"], figures["part_of"]) == (2, "twice")
    system = System("slid", str(tmp_path / "slid.run.txt"), found, {}, (), ())
    assert read_windows(f"{tmp_path}/slid.choices.jsonl.gz", system)


def test_what_slid_alone_is_part_of_what_is_read_twice_unless_it_is_there(
    commands: Callable[[], list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Path] = []
    monkeypatch.setattr(measured, "before_again", lambda twice, slid, qrels: parts.append(slid))
    for depth in (20, 100):
        if depth == 100:
            (tmp_path / "dl21.bm25.100.json").write_text("kept")
        measured.rank_twice(None, "chain", "bm25", depth, Path("lists"), tmp_path)
        assert [words[1] for words in commands()] == ["rerank"]
    assert parts == [tmp_path / "dl21.bm25.20"]


def test_what_reading_twice_gains_is_what_it_has_over_sliding(tmp_path: Path) -> None:
    """Query by query, in whatever order the runs have them; a query that a run lacks counts 0."""
    orders = {".twice": {"q1": "ab", "q2": "ba"}, "": {"q2": "ba", "q1": "ba"}}  # of the first query it gains
    for way, queries in orders.items():
        run = {qid: [(docid, 1.0 - place) for place, docid in enumerate(order)] for qid, order in queries.items()}
        write_run(run, tmp_path / f"bm25.20{way}.run.txt", tag="dpo")
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    gains = [1 - 1 / math.log2(3), 0.0, 0.0]
    found = summary.over_sliding({"dpo": f"{tmp_path}/bm25.20.twice"}, qrels)
    assert found["dpo"]["difference"] == pytest.approx(fmean(gains))
    assert found["dpo"]["interval"] == pytest.approx(student_interval(gains))
    (tmp_path / "bm25.20.run.txt").unlink()
    assert summary.over_sliding({"dpo": f"{tmp_path}/bm25.20.twice"}, qrels) == {}


def test_what_knows_the_answers_is_corrected_apart() -> None:
    assert summary.families(["chain", "judged", "dpo"]) == {"": ["chain", "dpo"], ".knowing": ["judged"]}
    assert summary.families(["chain"]) == {"": ["chain"]}


def test_what_is_at_work_keeps_others_out(tmp_path: Path) -> None:
    with (
        results.alone(tmp_path / "runs"),
        pytest.raises(UserError, match="another `make results` is at work in "),
        results.alone(tmp_path / "runs"),
    ):
        pass
    with results.alone(tmp_path / "runs"):
        pass


def test_an_adapter_is_not_shipped_over_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is what is read"):
        ship_adapter.ship(tmp_path / "adapter", tmp_path / "x" / ".." / "adapter")


def test_training_without_practice_makes_an_adapter_as_practice_does() -> None:
    """Else the row without it would differ by more than that."""
    made = [
        yaml.safe_load((recipes.RECIPES / f"trecdl.{name}.yaml").read_text())["model"]["init_args"]["backbone"]["lora"]
        for name in ("pointing", "sft")
    ]
    assert made[0] == made[1]


def test_one_query_has_no_interval_and_is_shown_all_the_same(tmp_path: Path) -> None:
    one = {"mean": 0.5, "interval": None}
    tested = {"difference": 0.1, "interval": None, "p": 1.0, "p_corrected": 1.0}
    compared = {"bm25.20": {"bm25": one, "dpo": one | {"over_bm25": tested}}}
    assert "0.5000 (-)" in tables.table(compared, {})
    assert "+0.1000 (-)" in tables.differences(compared)
    kept = {"dpo": {"answer_logprob": -1.0, "bits_per_byte": 1.0}}  # the base was not asked
    assert pictures.changes(kept["dpo"], "bits_per_byte") == {}  # so it has no place, least of all at no change
    pictures.draw_trade_off(compared, kept, tmp_path / "p.png")


def test_the_table_has_a_line_for_each_row() -> None:
    compared = {column: {column.partition(".")[0]: FIGURES, "base": FIGURES, "dpo": FIGURES} for column in COLUMNS}
    change = {"difference.acc_cloze": -0.01, "difference.acc_cloze.low": -0.02, "difference.acc_cloze.high": 0.005}
    kept = {
        "base": {"answer_logprob": -1.3678, "answer_margin": 0.1, "bits_per_byte": 0.9952, "acc_cloze": 0.285},
        "dpo": {"answer_logprob": -1.4, "answer_margin": 0.2, "bits_per_byte": 1.0, "acc_cloze": 0.275, **change},
    }
    kept["base"] |= {"acc": 0.25, "acc_p_chance": 0.51}
    kept["dpo"]["acc"] = 0.26
    heading, rule, first_stage, base, dpo = tables.table(compared, kept).splitlines()
    assert len({line.count("|") for line in (heading, rule, first_stage, base, dpo)}) == 1
    assert "| bm25, top 100 |" in heading
    assert "| bm25, top 20, twice |" in heading
    assert base.endswith("| 0.5000 (0.400 to 0.600) | -1.3678 | 0.1000 | 0.9952 | 0.2850 | 0.2500 (p = 0.510) |")
    assert dpo.endswith("| -1.4000 | 0.2000 | 1.0000 | -0.0100 (-0.0200 to +0.0050) | 0.2600 |")


def answered(right: int, logp: float) -> Retention:
    """Twelve questions, so many of which are answered right in both forms."""
    rows = [
        Answered(f"q{i}", "s", *[(0.0, -1.0, -2.0, -3.0) if i < right else (-1.0, 0.0, -2.0, -3.0)] * 2, 0, -9.0)
        for i in range(12)
    ]
    return Retention(tuple(rows), tuple(Read(f"d{i}", 800.0 - logp * (i + 1), 100) for i in range(4)), 0)


def test_what_is_kept_is_compared_with_direct_sft(tmp_path: Path) -> None:
    for name, found in {"direct": answered(4, 1.0), "dpo": answered(7, 2.0)}.items():
        folder = tmp_path / "measured" / name
        folder.mkdir(parents=True)
        found.save(folder / measured.DETAILS)
        (folder / "mmlu.json").write_text(json.dumps(found.figures()))
    kept = {name: summary.retained(name, tmp_path) for name in ("direct", "dpo")}
    assert not any(name.startswith("over_direct") for name in kept["direct"])
    assert kept["dpo"]["over_direct.difference.acc"] == pytest.approx(0.25)
    assert kept["dpo"]["over_direct.difference.bits_per_byte"] == pytest.approx(-0.025)
    _, _, line = tables.kept_over_direct(kept).splitlines()
    assert line.startswith("| chain SFT + DPO | ")
    assert "| -0.0250 (-0.0" in line
    assert line.count("+0.2500 (") == 3


def test_one_row_makes_a_summary(shared_data: Path, tmp_path: Path) -> None:
    lists = shared_data / "trec-dl"
    folder = tmp_path / "measured" / "base"
    folder.mkdir(parents=True)
    for first_stage in LISTS:
        records = list(open_candidates(lists / f"dl21.{first_stage}.top100.jsonl.gz"))
        write_run(in_first_stage_order(records), folder / f"dl21.{first_stage}.20.run.txt", tag="base")
        windows = [
            WindowChoices(r.qid, 0, tuple(p.docid for p in r.passages[:2]), (1, 2), 2, (-0.1, 0.0)) for r in records
        ]
        write_choices(windows, folder / f"dl21.{first_stage}.20.choices.jsonl.gz")
        (folder / f"dl21.{first_stage}.20.json").write_text("{}")
    answered(3, 1.0).save(folder / measured.DETAILS)
    (folder / "mmlu.json").write_text("{}")
    (tmp_path / "measured" / "direct").mkdir()  # has ranked, and was stopped before it was asked
    for suffix in ("run.txt", "choices.jsonl.gz", "json"):
        shutil.copy(folder / f"dl21.bm25.20.{suffix}", tmp_path / "measured" / "direct")
    shutil.copy(folder / "dl21.bm25.20.run.txt", folder / f"dl21.bm25.20.{TWICE}.run.txt")  # no choices are known
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "complete").touch()  # an adapter that came without its training
    summary.summarise(lists, tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    for depth in (20, 100):
        assert written["ranking"][f"bm25.{depth}"]["bm25"]["mean"] == pytest.approx(0.4458, abs=5e-5)
    assert written["ranking"]["bm25.20"]["base"]["over_bm25"]["difference"] == 0
    assert written["ranking"]["bm25.20"]["base"]["over_direct"]["difference"] == 0
    assert "direct" not in written["ranking"]["splade_pp_ed.20"]
    assert "base" not in written["ranking"]["bm25.100"]
    assert written["ranking"][f"bm25.20.{TWICE}"]["base"]["over_bm25"]["difference"] == 0
    assert list(written["retention"]) == ["base"]
    again = written["ranking"][f"bm25.20.{TWICE}"]["base"]["over_sliding"]
    assert (again["difference"], again["p"], again["p_corrected"]) == (0, 1, 1)
    for name in ("summary.md", "trade_off.png", "learning_curves.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_the_shipped_adapter_is_small_and_its_figures_are_named() -> None:
    size = sum(file.stat().st_size for file in check_results.ADAPTER.iterdir())
    assert size < 12e6
    weights = load_file(check_results.ADAPTER / "adapter_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    reranker = Reranker.from_pretrained(MODEL, str(check_results.ADAPTER), dtype="float32")
    first = reranker.rank("how long do fleas live", ["Fleas live for a hundred days.", "Paris is in France."])[0]
    assert first.docid == "0"
    assert check_results.read_expected(check_results.EXPECTED)["bm25.nDCG@10"] > 0.4458


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected.json does not exist"),
        ("{", "expected.json is no JSON: "),
        ('{"acc": 1}', "expected.json must have acc_cloze, answer_logprob, .*: --write makes it anew"),
        ("[]", "expected.json must have "),
    ],
)
def test_expected_figures_are_read_before_any_work(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "expected.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        check_results.read_expected(path)


def test_each_difference_has_its_line() -> None:
    found = {"difference": 0.0612, "interval": [0.01, 0.1], "p": 0.0123, "p_corrected": 0.0246}
    compared = {
        "bm25.100": {
            "bm25": {**FIGURES, "over_direct": found},
            "direct": {**FIGURES, "over_bm25": found},
            "dpo": {"over_direct": found},
        }
    }
    _, _, *lines = tables.differences(compared).splitlines()
    assert lines == [
        "| bm25, top 100 | direct SFT (RankZephyr's way) | bm25 | +0.0612 (+0.010 to +0.100) | 0.0123 | 0.0246 |",
        "| bm25, top 100 | chain SFT + DPO | direct | +0.0612 (+0.010 to +0.100) | 0.0123 | 0.0246 |",
    ]


def test_what_a_training_took_and_learned(tmp_path: Path) -> None:
    steps = [*range(20), 19]  # the last was done again
    rows = [{"step": step, "train/tokens": 600.0, "train/tokens_per_s": 10.0} for step in steps]
    learned = [{"step": step, "train/choice_loss": 1.0 - 0.02 * step, "train/no_skill": 0.9} for step in steps]
    (tmp_path / "config.yaml").write_text("trainer: {devices: '2'}")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + learned))
    took = learning.cost(tmp_path)
    assert took == pytest.approx(
        {
            "steps": 20,
            "tokens": 24000.0,
            "minutes": 20.0,
            "choice_loss.first": 0.91,
            "choice_loss.last": 0.71,
            "guessing.first": 0.9,
            "guessing.last": 0.9,
        }
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    preferences = learning.cost(tmp_path)
    assert "choice_loss.last" not in preferences
    _, _, *lines = tables.trainings({"chain": took, "dpo": preferences}).splitlines()
    assert lines == [
        "| chain | 20 | 24,000 | 20.0 | 0.910 (0.900) | 0.710 (0.900) |",
        "| dpo | 20 | 24,000 | 20.0 |  |  |",
    ]


def test_curves_are_means_over_all_that_was_read(tmp_path: Path) -> None:
    for name, steps in {"pointing": 2, "direct_asked": 50}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "complete").touch()
        (tmp_path / name / "config.yaml").write_text("trainer: {devices: 2}")
        rows = [
            {"step": step, "train/tokens": 5.0, "train/choice_loss": 1.0 + step // 20, "train/no_skill": 2.0}
            for step in range(steps)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learning.over_guessing(tmp_path / "direct_asked") == [(19, 0.5), (39, 1.0), (49, 1.5)]
    assert learning.read_until("direct_asked", [0, 19], tmp_path) == [30, 220]  # practice read 20
    curve = pictures.by_tokens("direct_asked", learning.over_guessing, tmp_path)
    assert curve == [(220, 0.5), (420, 1.0), (520, 1.5)]
    pictures.draw_curves(["direct_asked"], tmp_path, tmp_path / "one.png")
    for name in ("pointing", "direct_asked"):
        (tmp_path / name / "metrics.jsonl").open("a").write('{"step": 1, "val/nDCG@10": 0.4}\n')
    pictures.draw_curves(["direct_asked"], tmp_path, tmp_path / "two.png")
    one, two = (imread(tmp_path / name).shape for name in ("one.png", "two.png"))
    assert (2 * one[1], one[0]) == (two[1], two[0])  # what was not watched has no place
    (tmp_path / "pointing" / "complete").unlink()
    assert pictures.by_tokens("direct_asked", learning.over_guessing, tmp_path) == []


def test_the_shipped_figures_are_those_expected_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"bm25.nDCG@10": 0.45, "answer_logprob": -1.4}
    check_results.check({"bm25.nDCG@10": 0.4599, "answer_logprob": -1.4049}, expected)
    assert "all 2 figures are as in results/expected.json" in capsys.readouterr().out
    wrong = {"bm25.nDCG@10": 0.4601, "answer_logprob": float("nan")}
    with pytest.raises(UserError) as error:
        check_results.check(wrong, expected)
    assert str(error.value).split("; ") == [
        "bm25.nDCG@10 is 0.4601, expected 0.4500, tolerance 0.01",
        "answer_logprob is nan, expected -1.4000, tolerance 0.005",
    ]


def test_a_shipped_adapter_is_half_as_large_and_all_but_equal(tiny_model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "run", tmp_path / "shipped"
    save_adapter(tiny_model, source, seed=1)
    save_settings(PromptSettings(max_passage_tokens=60), SlidingWindow(), source)
    target.mkdir()
    (target / "README.md").write_text("a model card")
    ship_adapter.ship(source, target)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, target))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.bfloat16
        torch.testing.assert_close(after[name].float(), weight, rtol=2**-8, atol=0)
    assert (target / "README.md").read_text() == "a model card"
    assert Reranker.from_pretrained(str(tiny_model), str(target)).reading == SlidingWindow()  # as any adapter
    ship_adapter.ship(source, target, window=8, stride=4, rounds=3)
    assert (load_prompt_settings(target), load_reading(target)) == (load_prompt_settings(source), Twice(8, 4, 100, 3))
    (source / "lit_rerank.json").unlink()
    with pytest.raises(UserError, match=r"holds no adapter of this project: lit_rerank\.json is missing"):
        ship_adapter.ship(source, target)
