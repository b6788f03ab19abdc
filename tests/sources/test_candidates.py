"""First-stage candidates."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage
from data_modules.sources import CandidatesSource
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

ROW = {
    "qid": "q1",
    "query": "Q",
    "candidates": [
        {"docid": "a", "text": "A\x85\u2028", "score": 2872755},
        {"docid": "b", "text": "", "score": -0.5},
        {"docid": "c", "text": "C"},
    ],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", ROW, ROW | {"qid": "q2"})


def test_candidates_keep_their_order_and_scores(path: Path) -> None:
    record, _ = CandidatesSource(path)
    assert record.passages == (Passage("a", "A\x85\u2028", 2872755.0), Passage("b", "", -0.5), Passage("c", "C"))
    assert record.permutation is None
    assert record.qrels is None


def test_depth_and_first_stage_teacher(path: Path) -> None:
    record, _ = CandidatesSource(path, depth=2, teacher="first_stage")
    assert [passage.docid for passage in record.passages] == ["a", "b"]
    assert record.permutation == (1, 2)
    assert len(next(iter(CandidatesSource(path, depth=9))).passages) == 3


def test_qrels_teach_the_highest_grade_first_then_the_first_stages_order(path: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q1 0 b 2\nq1 0 a -1\nq1 0 elsewhere 3\n")
    source = CandidatesSource(path, qrels=qrels, teacher="qrels", on_error="skip")
    (judged,) = source
    assert judged.permutation == (2, 3, 1)
    assert source.skipped == [
        f"{path}:2: query 'q2' is not judged, so qrels teach no order; `on_error: skip` leaves it out"
    ]
    with pytest.raises(UserError, match="'q2' is not judged"):
        list(CandidatesSource(path, qrels=qrels, teacher="qrels"))


def test_qrels_are_those_of_the_query(path: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q1 0 a 0\nq1 0 elsewhere 3\nq9 0 a 1\n")
    judged, unjudged = CandidatesSource(path, qrels=qrels)
    assert judged.qrels == {"a": 0, "elsewhere": 3}
    assert unjudged.qrels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"depth": -1}, "depth is -1; it must be at least 1"),
        ({"teacher": "bm25"}, "teacher is 'bm25'; it must be 'none', 'first_stage' or 'qrels'"),
        ({"teacher": "qrels"}, "teacher is 'qrels', but there are no qrels"),
        ({"qrels": "absent.txt"}, "absent.txt does not exist"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(UserError, match=message):
        CandidatesSource(path, **options)


def test_broken_qrels_raise_even_where_lines_are_skipped(path: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q1 0 a 0\nq1 0 b\n")
    with pytest.raises(UserError, match=r"qrels\.txt:2: has 3 columns"):
        CandidatesSource(path, qrels=qrels, on_error="skip")


@pytest.mark.parametrize(("collection", "queries"), [("dl19", 43), ("dl21", 53), ("dl22", 76)])
@pytest.mark.parametrize("first_stage", ["bm25", "splade_pp_ed"])
def test_real_candidates(collection: str, queries: int, first_stage: str, shared_data: Path) -> None:
    folder = shared_data / "trec-dl"
    records = list(CandidatesSource(folder / f"{collection}.{first_stage}.top100.jsonl.gz"))
    assert len(records) == len({record.qid for record in records}) == queries
    sizes = Counter(len(record.passages) for record in records)
    assert max(sizes) == sizes.most_common(1)[0][0] == 100
    for record in records:
        scores = [passage.score for passage in record.passages if passage.score is not None]
        assert len(scores) == len(record.passages)
        assert scores == sorted(scores, reverse=True)


def test_real_judgements(shared_data: Path) -> None:
    folder = shared_data / "trec-dl"
    source = CandidatesSource(folder / "dl21.bm25.top100.jsonl.gz", folder / "qrels.dl21.txt", depth=20)
    records = list(source)
    assert all(record.qrels for record in records)
    assert {len(record.passages) for record in records} == {20}
    assert {grade for record in records for grade in (record.qrels or {}).values()} == {0, 1, 2, 3}
