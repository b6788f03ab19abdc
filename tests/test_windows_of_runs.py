"""Whether choices led to a run, by hand and for what rerank has written."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.choices import ChoicesSource, WindowChoices
from data_modules.trec import read_run
from lit_rerank.comparison.windows import by_query, led_to
from tests.test_evaluation import rerank, write_candidates

LOWER = WindowChoices("q", 0, ("c", "d", "e", "f"), (4, 2, 1, 3), 4)
UPPER = WindowChoices("q", 1, ("a", "b", "f", "d"), (3, 4, 1, 2), 4)


def test_the_last_of_sliding_windows_is_the_top_of_the_list() -> None:
    assert led_to([LOWER, UPPER], ["f", "d", "a", "b", "c", "e", "rest"])
    assert not led_to([LOWER, UPPER], ["d", "f", "a", "b", "c", "e"])
    assert not led_to([LOWER], ["f", "d", "a", "b", "c", "e"])  # a window is missing
    assert not led_to([LOWER, UPPER], [])


def test_rounds_are_of_a_list_in_order_of_strength() -> None:
    rounds = [
        WindowChoices("q", 0, ("b", "a"), (2, 1), 1, (-0.5, -1.5)),
        WindowChoices("q", 1, ("c", "d"), (1, 2), 1, (-0.1, -0.3)),
        WindowChoices("q", 2, ("d", "a"), (2, 1), 1, (-0.2, -1.2)),
    ]
    # a is better than b by 1, than d by 1, and c than d by 0.2.
    assert led_to(rounds, ["a", "c", "b", "d", "rest"])
    assert led_to(rounds, ["a", "c", "d", "b", "rest"])
    for wrong in (["c", "a", "b", "d"], ["a", "b", "c", "d"], ["a", "x", "c", "b", "d"], ["a", "c", "b"], []):
        assert not led_to(rounds, wrong)
    assert not led_to([replace(window, logps=None) for window in rounds], ["a", "c", "b", "d"])


@pytest.mark.parametrize(
    "options",
    [
        ["--shuffle", "1"],
        ["--top_k", "1"],
        ["--depth", "5"],
        ["--decode", "generate"],
        ["--window", "20", "--stride", "10"],
        ["--rounds", "3", "--depth", "5"],
        ["--rounds", "2", "--window", "20"],
    ],
    ids=" ".join,
)
def test_what_rerank_writes_is_of_its_run_and_of_no_other(tmp_path: Path, tiny_model: Path, options: list[str]) -> None:
    candidates, file = write_candidates(tmp_path / "c.jsonl", passages=7), tmp_path / "choices.jsonl"
    sizes = ["--stride", "2"] if "--window" not in options else []
    sizes += ["--window", "4"] if "--window" not in options else []
    rerank(tmp_path, tiny_model, candidates, "--choices", str(file), *sizes, *options)
    run = {qid: [docid for docid, _ in ranking] for qid, ranking in read_run(tmp_path / "out" / "run.txt").items()}
    for windows in by_query(list(ChoicesSource(file))):
        ranking = run[windows[0].qid]
        assert led_to(windows, ranking)
        assert not led_to(windows, [ranking[1], ranking[0], *ranking[2:]])
        assert not led_to(windows, ranking[::-1])
