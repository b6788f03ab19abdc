"""What rerank writes about its choices, and how it is read back."""

import json
from dataclasses import asdict, replace
from math import exp
from pathlib import Path
from typing import Any

import pytest

from data_modules.choices import ChoicesSource, WindowChoices, write_choices
from data_modules.trec import read_run
from lit_rerank.errors import UserError
from tests.test_evaluation import rerank, write_candidates

WINDOW = WindowChoices("q1", 0, ("a", "b", "c"), (2, 1, 3), 2, (-0.5, -0.25, 0.0))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    windows = [
        WINDOW,
        replace(WINDOW, turn=1, logps=None, malformed=True),
        replace(WINDOW, qid="q\u2028<b>", choices=1),
        replace(WINDOW, turn=2, dealt=True),
    ]
    for name in ("choices.jsonl", "choices.jsonl.gz"):
        write_choices(windows, tmp_path / name)
        assert list(ChoicesSource(tmp_path / name)) == windows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutation": [1, 1, 2]}, r"the permutation of query 'q1' \(3 passages\) lacks \[3\]"),
        ({"docids": ["a", "a", "b"]}, '"docids" must be a list of different strings'),
        ({"docids": []}, '"docids" must be a list of different strings'),
        ({"logps": [-1.0, -1.0]}, '"logps" has 2 values for 3 passages'),
        ({"logps": [-1.0, 0.5, -1.0]}, '"logps" must be a list of numbers, none above 0'),
        ({"choices": 4}, '"choices" is 4; it counts places'),
        ({"choices": 0}, '"choices" is 0; it counts places'),
        ({"malformed": 1}, '"malformed" must be true or false'),
        ({"dealt": None}, '"dealt" must be true or false'),
        ({}, "turn 0 of query 'q1' stands further up, too"),
    ],
)
def test_a_broken_line_is_told_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "choices.jsonl"
    good = asdict(WINDOW)
    file.write_text(json.dumps(good) + "\n" + json.dumps(good | {"turn": 1 if change else 0} | change) + "\n")
    with pytest.raises(UserError, match=rf"choices\.jsonl:2: {message}"):
        list(ChoicesSource(file))


@pytest.mark.parametrize(
    ("options", "choices"),
    [([], [4, 4]), (["--top_k", "1"], [2, 1]), (["--decode", "first"], [1, 1]), (["--decode", "generate"], [4, 4])],
    ids=lambda value: " ".join(map(str, value)),
)
def test_choices_lead_from_the_list_that_was_shown_to_the_run(
    tmp_path: Path, tiny_model: Path, options: list[str], choices: list[int]
) -> None:
    candidates, file = write_candidates(tmp_path / "c.jsonl"), tmp_path / "out" / "choices.jsonl"
    more = ["--window", "4", "--stride", "2", "--shuffle", "1", "--choices", str(file)]
    rerank(tmp_path, tiny_model, candidates, *more, *options)
    windows = list(ChoicesSource(file))
    assert [(window.qid, window.turn) for window in windows] == [("q0", 0), ("q0", 1), ("q1", 0), ("q1", 1)]
    assert [window.choices for window in windows] == choices * 2
    for (qid, ranking), first, last in zip(
        read_run(tmp_path / "out" / "run.txt").items(), windows[::2], windows[1::2], strict=True
    ):
        assert first.qid == qid
        lower = [first.docids[identifier - 1] for identifier in first.permutation]
        assert list(last.docids[2:]) == lower[:2]
        upper = [last.docids[identifier - 1] for identifier in last.permutation]
        assert [docid for docid, _ in ranking] == upper + lower[2:]
        if last.logps is not None:  # the run's scores say how probable each choice was
            assert [score % 1 for _, score in ranking[1:4]] == pytest.approx([0.99 * exp(p) for p in last.logps[1:]])
    assert all((window.logps is None) == ("generate" in options) for window in windows)


def test_several_readings_of_a_window_are_no_choices(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="choices are those of one reading; with self_consistency"):
        rerank(
            tmp_path,
            Path("/nowhere"),
            write_candidates(tmp_path / "c.jsonl"),
            *("--choices", str(tmp_path / "choices.jsonl"), "--self_consistency", "2"),
        )
