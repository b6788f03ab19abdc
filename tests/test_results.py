"""`make results`: what it runs and in which order."""

import json
import shlex
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from data_modules.choices import ChoicesSource
from data_modules.trec import read_run
from lit_rerank.comparison.systems import System
from lit_rerank.comparison.windows import read_windows
from lit_rerank.errors import UserError
from scripts import (
    measured,
    recipes,
    results,
    trained,
)
from scripts.rows import ROWS, Mean, Training
from tests.test_evaluation import rerank, write_candidates


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
    read = [config.relative_to(recipes.RECIPES.parent).as_posix() for config in recipes.configs("trecdl.pointing")]
    assert read == ["trainer/default.yaml", "model/sft.yaml", "backbone/lora.yaml", "recipes/trecdl.pointing.yaml"]
    own = tmp_path / "trecdl.pointing.yaml"
    own.write_text("trainer: {max_steps: 1}")
    with monkeypatch.context() as patch:
        patch.setattr(trained, "configs", lambda recipe: [own])
        assert "other trecdl.pointing.yaml" in trained.different("pointing", tmp_path)
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
    (tmp_path / "chain_asked").mkdir()
    (tmp_path / "chain_asked" / "complete").touch()
    assert {*results.learned_from(["chain_lists"], tmp_path)} == {data / "lists.jsonl.gz", replay}
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "complete").touch()
    assert results.learned_from(["chain", "windows_of_4"], tmp_path) == []


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


def test_what_is_at_work_keeps_others_out(tmp_path: Path) -> None:
    with (
        results.alone(tmp_path / "runs"),
        pytest.raises(UserError, match="another `make results` is at work in "),
        results.alone(tmp_path / "runs"),
    ):
        pass
    with results.alone(tmp_path / "runs"):
        pass


def test_training_without_practice_makes_an_adapter_as_practice_does() -> None:
    """Else the row without it would differ by more than that."""
    made = [
        yaml.safe_load((recipes.RECIPES / f"trecdl.{name}.yaml").read_text())["model"]["init_args"]["backbone"]["lora"]
        for name in ("pointing", "sft")
    ]
    assert made[0] == made[1]
