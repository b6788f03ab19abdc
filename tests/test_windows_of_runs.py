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
        WindowChoices("q", 0, ("b", "a"), (2, 1), 1, (-0.5, -1.5), dealt=True),
        WindowChoices("q", 1, ("c", "d"), (1, 2), 1, (-0.1, -0.3), dealt=True),
        WindowChoices("q", 2, ("d", "a"), (2, 1), 1, (-0.2, -1.2), dealt=True),
    ]
    # a is better than b by 1, than d by 1, and c than d by 0.2.
    assert led_to(rounds, ["a", "c", "b", "d", "rest"])
    assert led_to(rounds, ["a", "c", "d", "b", "rest"])
    for wrong in (["c", "a", "b", "d"], ["a", "b", "c", "d"], ["a", "x", "c", "b", "d"], ["a", "c", "b"], []):
        assert not led_to(rounds, wrong)
    assert not led_to([replace(window, logps=None) for window in rounds], ["a", "c", "b", "d"])


def test_after_sliding_both_orders_are_fused() -> None:
    """Slid: f, d, a, b, c, e. Of these six, rounds prefer a to f by 2; the others are alike, in the order found."""
    rounds = [
        WindowChoices("q", 2, ("f", "a"), (2, 1), 1, (-0.1, -2.1), dealt=True),
        WindowChoices("q", 3, ("d", "b"), (1, 2), 1, (-0.7, -0.7), dealt=True),
        WindowChoices("q", 4, ("c", "e"), (1, 2), 1, (-0.7, -0.7), dealt=True),
    ]
    windows = [LOWER, UPPER, *rounds]  # rounds: a, d, b, c, e, f; ranks of a 3 and 1, of d 2 and 2, of f 1 and 6
    assert led_to(windows, ["a", "d", "f", "b", "c", "e", "rest"])
    assert not led_to(windows, ["d", "a", "f", "b", "c", "e"])
    assert not led_to(windows, ["f", "d", "a", "b", "c", "e"])  # as it was slid
    assert not led_to(windows[1:], ["a", "d", "f", "b", "c", "e"])  # a window is missing
    assert not led_to([*windows[:2], replace(rounds[0], logps=None), *rounds[1:]], ["a", "d", "f", "b", "c", "e"])


@pytest.mark.parametrize(
    "options",
    [
        ["--shuffle", "1"],
        ["--top_k", "1"],
        ["--depth", "5"],
        ["--decode", "generate"],
        ["--window", "20", "--stride", "10"],
        ["--rounds", "3", "--depth", "5"],
        ["--window", "4", "--stride", "2", "--rounds", "3", "--depth", "5"],
        ["--window", "20", "--stride", "5", "--rounds", "2"],
        ["--rounds", "2", "--window", "20"],
    ],
    ids=" ".join,
)
def test_what_rerank_writes_is_of_its_run_and_of_no_other(tmp_path: Path, tiny_model: Path, options: list[str]) -> None:
    candidates, file = write_candidates(tmp_path / "c.jsonl", passages=7), tmp_path / "choices.jsonl"
    sizes = ["--stride", "2"] if not {"--window", "--rounds"} & {*options} else []
    sizes += ["--window", "4"] if "--window" not in options else []
    rerank(tmp_path, tiny_model, candidates, "--choices", str(file), *sizes, *options)
    run = {qid: [docid for docid, _ in ranking] for qid, ranking in read_run(tmp_path / "out" / "run.txt").items()}
    for windows in by_query(list(ChoicesSource(file))):
        ranking = run[windows[0].qid]
        assert led_to(windows, ranking)
        assert not led_to(windows, [ranking[1], ranking[0], *ranking[2:]])
        assert not led_to(windows, ranking[::-1])
