"""BM25, against the formula and against a published run."""

import math
from pathlib import Path

import pytest

from data_modules.catalogue import open_collection
from data_modules.collection import Collection, Document
from data_modules.first_stage import Bm25, open_first_stage
from data_modules.trec import write_run
from lit_rerank.errors import UserError
from lit_rerank.measures import means, parse_measure, per_query

# As words: fleas are stemmed to flea, "the" and "of" are stop words, the title counts.
TEXTS = {
    "a": ("the fleas live", "", 2),
    "b": ("dogs have fleas, and fleas bite dogs", "", 6),
    "c": ("capital of france", "Paris", 3),
    "d": ("", "", 0),
    "e": ("the fleas live", "", 2),
}
TINY = Collection(
    "tiny",
    {docid: Document(docid, text, title) for docid, (text, title, _) in TEXTS.items()},
    {"q1": "fleas living", "q2": "the"},
    {"q1": {"a": 1}},
)


def bm25(count: int, length: int, df: int, k1: float = 0.9, b: float = 0.4) -> float:
    """One word's part of a score: Robertson's formula as Lucene has it."""
    n, mean = len(TEXTS), sum(length for *_, length in TEXTS.values()) / len(TEXTS)
    return math.log(1 + (n - df + 0.5) / (df + 0.5)) * count / (count + k1 * (1 - b + b * length / mean))


@pytest.fixture(scope="module")
def stage() -> Bm25:
    return Bm25(TINY)


def test_scores_are_those_of_the_formula(stage: Bm25) -> None:
    record, _ = stage.search(TINY.queries, 3)
    expected = {
        "e": bm25(1, 2, df=3) + bm25(1, 2, df=2),
        "a": bm25(1, 2, df=3) + bm25(1, 2, df=2),
        "b": bm25(2, 6, df=3),
    }
    assert [passage.docid for passage in record.passages] == ["e", "a", "b"]
    assert {passage.docid: passage.score for passage in record.passages} == pytest.approx(expected, rel=1e-6)
    assert (record.qid, record.query, record.qrels) == ("q1", "fleas living", {"a": 1})


def test_k1_and_b_count() -> None:
    (record,) = Bm25(TINY, k1=2.0, b=1.0).search({"q": "flea"}, 1)
    assert record.passages[0].docid == "e"
    assert record.passages[0].score == pytest.approx(bm25(1, 2, df=3, k1=2.0, b=1.0), rel=1e-6)


def test_the_title_is_searched_and_read(stage: Bm25) -> None:
    (record,) = stage.search({"q": "paris"}, 1)
    assert (record.passages[0].docid, record.passages[0].text) == ("c", "Paris: capital of france")


@pytest.mark.parametrize("query", ["the", "zebra", "?!"])
def test_what_no_document_holds_scores_nothing(query: str, stage: Bm25, tmp_path: Path) -> None:
    (record,) = stage.search({"q": query}, 9)
    assert [(passage.docid, passage.score) for passage in record.passages] == [(docid, 0.0) for docid in "edcba"]
    write_run({"q": [(p.docid, p.score or 0.0) for p in record.passages]}, tmp_path / "run.txt", "t")


def test_ties_at_the_last_place_are_cut_by_docid(stage: Bm25) -> None:
    (record,) = stage.search({"q": "live"}, 1)
    assert [passage.docid for passage in record.passages] == ["e"]


def test_neighbours(stage: Bm25) -> None:
    assert [passage.docid for passage in stage.neighbours("fleas living", 2)] == ["e", "a"]
    assert [passage.docid for passage in stage.neighbours("france", 99)] == ["c", "e", "d", "b", "a"]
    assert [passage.docid for passage in stage.neighbours("d", 1)] == ["e"]  # a text, whatever a docid is
    assert stage.neighbours("france", 0) == []


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    Bm25(TINY).search(TINY.queries, 2)
    assert capfd.readouterr() == ("", "")


def test_wrong_use() -> None:
    with pytest.raises(UserError, match="there is no first stage 'splade'; possible are bm25"):
        open_first_stage("splade", TINY)
    with pytest.raises(UserError, match="collection 'empty' holds no word to index"):
        Bm25(Collection("empty", {"d": Document("d", "")}))
    with pytest.raises(UserError, match="depth is 0"):
        Bm25(TINY).search(TINY.queries, 0)


def test_cranfield(shared_data: Path) -> None:
    collection = open_collection(str(shared_data / "cranfield"))
    records = open_first_stage("bm25", collection).search(collection.queries, 100)
    assert len(records) == 225
    assert {len(record.passages) for record in records} == {100}
    assert all(record.qrels for record in records)
    run = {record.qid: [(p.docid, p.score or 0.0) for p in record.passages] for record in records}
    measured = means(per_query(run, collection.qrels, [parse_measure("nDCG@10")]))
    assert measured["nDCG@10"] == pytest.approx(0.4041, abs=0.005)  # of the run beside the collection
