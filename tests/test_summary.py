"""`make results`: its table, its pictures and the figures in them."""

import json
import math
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from matplotlib.image import imread

from data_modules.choices import WindowChoices, write_choices
from data_modules.sources.detect import open_candidates
from data_modules.trec import write_run
from lit_rerank.evaluation.rerank import in_first_stage_order
from lit_rerank.intervals import student_interval
from lit_rerank.measurement import Answered, Read, Retention
from scripts import learning, measured, pictures, summary, tables
from scripts.rows import COLUMNS, LISTS, TWICE

FIGURES = {"mean": 0.5, "interval": [0.4, 0.6]}


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
