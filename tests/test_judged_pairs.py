"""What a model prefers in pairs of judged passages."""

import json
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import pytest

from data_modules.records import Window
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError
from scripts import judged_pairs
from scripts.rows import MODEL

GRADES = {"a": 3, "b": 0, "c": 1, "d": 2, "e": 0}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [
        {
            "qid": qid,
            "query": "how long do fleas live",
            "candidates": [{"docid": d, "text": f"Fleas, {d}.", "score": -float(i)} for i, d in enumerate(docids)],
        }
        for qid, docids in {"1": "abcde", "2": "bce"}.items()
    ]
    lists, qrels = tmp_path / "lists.jsonl", tmp_path / "qrels.txt"
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels.write_text("".join(f"{qid} 0 {docid} {grade}\n" for qid in "12" for docid, grade in GRADES.items()))
    return lists, qrels


def test_pairs_are_of_the_relevant_and_the_irrelevant(files: tuple[Path, Path]) -> None:
    lists, qrels = files
    pairs = list(judged_pairs.pairs([lists], qrels, 30))
    assert {window.qid for window in pairs} == {"1"}  # the other list holds nothing relevant
    assert {tuple(p.docid for p in w.passages) for w in pairs} == {("a", "b"), ("a", "e"), ("d", "b"), ("d", "e")}


def prefers(probability: Callable[[Window], float]) -> Callable[..., list[Decoded]]:
    """A decoder that gives the passage that stands first this probability."""

    def decode(windows: Sequence[Window], progress: Callable[[int], object]) -> list[Decoded]:
        chances = [probability(window) for window in windows]
        return [
            Decoded((1, 2) if p > 0.5 else (2, 1), (log(max(p, 1 - p)), log(max(min(p, 1 - p), 1e-300))))
            for p in chances
        ]

    return decode


def test_what_is_preferred_in_either_order_and_by_both(files: tuple[Path, Path]) -> None:
    pairs = list(judged_pairs.pairs([files[0]], files[1], 10))
    by_place = judged_pairs.measured(prefers(lambda window: 0.9), pairs)  # type: ignore[arg-type]
    assert by_place == {"stands_first": 1.0, "stands_second": 0.0, "both": 0.0}
    likes_a = sum(window.passages[0].docid == "a" for window in pairs) / 10
    assert 0 < likes_a < 1
    text_and_place = judged_pairs.measured(  # a place counts as much as a text, but where that is surer
        prefers(lambda window: 0.7 if window.passages[1].docid != "a" else 0.1),
        pairs,  # type: ignore[arg-type]
    )
    assert text_and_place == {"stands_first": 1.0, "stands_second": likes_a, "both": likes_a}
    certain = judged_pairs.measured(prefers(lambda window: float(window.passages[0].docid in "ad")), pairs)  # type: ignore[arg-type]
    assert certain == {"stands_first": 1.0, "stands_second": 1.0, "both": 1.0}


def test_the_command_writes_its_figures(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lists, qrels = files
    metrics = lists.parent / "out" / "pairs.json"
    words = ["--model", MODEL, "--candidates", str(lists), "--qrels", str(qrels), "--metrics", str(metrics)]
    monkeypatch.setattr("sys.argv", ["judged_pairs", *words])
    judged_pairs.main()
    found = json.loads(metrics.read_text())
    assert (found["decode"], found["pairs"]) == ("likelihood", 2)
    assert found["stands_first"] == found["stands_second"] == found["both"]  # each passage is read alone
    qrels.write_text("1 0 a 1\n")
    with pytest.raises(UserError, match="no list holds both"):
        judged_pairs.main()
