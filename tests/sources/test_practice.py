"""Windows made from a collection."""

import re
from pathlib import Path
from typing import Any

import pytest

from data_modules.collection import Collection
from data_modules.first_stage import Bm25
from data_modules.records import Passage, RankingRecord, Window
from data_modules.rows import to_record, to_row
from data_modules.sources import JsonlSource, JudgedSource, MixedSource, PointingSource
from data_modules.sources.own import write_jsonl
from data_modules.sources.practice import NEAR, Negatives, Queries, answering
from data_modules.windows import Augmentation, generator
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

WORDS = [
    "river",
    "stone",
    "cloud",
    "apple",
    "tiger",
    "lemon",
    "piano",
    "violin",
    "garden",
    "window",
    "silver",
    "copper",
]


def text(i: int) -> str:
    first = " ".join(f"{word}{i}" for word in WORDS)
    return f"{first}. " + " ".join(f"{word}{i}x" for word in WORDS) + "."


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Twenty documents: objects of two families, two passages each."""
    names = [f"{family}.f{i}{part}" for family in "ab" for i in range(5) for part in ("", "#2")]
    rows = [{"_id": name, "title": f"T{i}", "text": text(i)} for i, name in enumerate(names)]
    return str(write_lines(tmp_path / "corpus.jsonl", *rows))


def test_a_collection_that_cannot_fill_a_window_is_refused(tmp_path: Path) -> None:
    rows = [{"_id": docid, "text": text(i)} for i, docid in enumerate(("a", "a#2", "b"))]
    source = PointingSource(str(write_lines(tmp_path / "corpus.jsonl", *rows)), windows=5, min_size=3, max_size=3)
    with pytest.raises(UserError, match="documents can stand beside"):
        list(source)


def chosen(record: RankingRecord) -> Passage:
    assert record.choices == 1
    assert record.permutation
    return record.passages[record.permutation[0] - 1]


def others(record: RankingRecord) -> list[str]:
    return [p.docid for p in record.passages if p != chosen(record)]


def name(docid: str) -> str:
    return docid.partition("#")[0]


@pytest.mark.parametrize("kind", [PointingSource, JudgedSource])
def test_a_pass_is_the_same_each_time(kind: Any) -> None:
    source = kind("pydocs/train", windows=90, min_size=2, max_size=4)
    records = list(source)
    assert records == list(source)
    assert len(records) == len({record.qid for record in records}) == 90
    assert {len(record.passages) for record in records} == {2, 3, 4}
    assert list(kind("pydocs/train", windows=90, min_size=2, max_size=4, seed=1)) != records
    for record in records:
        assert all(name(docid) != name(chosen(record).docid) for docid in others(record))
    assert {record.known[0] for record in records} == {1, 2, 3, 4}


def test_spans_are_shown(small: str) -> None:
    for record in PointingSource(small, 50):
        assert record.query in " ".join(chosen(record).text.split()[:20])
        assert 4 <= len(record.query.split()) <= 10


@pytest.mark.parametrize("kind", ["sentence", "first", "title"])
def test_what_is_asked_is_cut_out(kind: str, small: str) -> None:
    for record in PointingSource(small, 50, Queries(span=0, **{kind: 1})):
        original = PointingSource(small).collection.documents[chosen(record).docid]
        assert record.query in original.passage.text
        assert record.query.rstrip(".") not in chosen(record).text
        if kind == "first":
            assert original.text.startswith(record.query)
        if kind == "title":
            assert (record.query, chosen(record).text) == (original.title, original.text)


def test_words_are_a_few_of_the_longer_ones_as_they_follow_each_other() -> None:
    for record in PointingSource("pydocs", 50, Queries(span=0, words=1)):
        asked, text = record.query.split(), chosen(record).text
        assert 2 <= len(asked) <= 4
        assert all(len(word) >= 5 and word.isalpha() for word in asked)
        assert re.search(r"\b.*\b".join(asked), text, re.IGNORECASE | re.DOTALL)


def test_excluded_answers_are_not_asked_about() -> None:
    source = PointingSource("pydocs", 400, exclude=["pydocs/train", "pydocs/val", "pydocs/test"])
    held_out = answering(source.collection)
    records = list(source)
    assert not held_out & {chosen(record).docid for record in records}
    assert held_out & {docid for record in records for docid in others(record)}


@pytest.mark.parametrize(
    ("grades", "expected"),
    [({"a": 0, "b": 1, "c": 2, "d": 3}, {"c", "d"}), ({"a": 0, "b": 1}, {"b"}), ({"a": 0}, set()), ({}, set())],
)
def test_answers_are_what_is_judged_relevant_beyond_doubt(grades: dict[str, int], expected: set[str]) -> None:
    assert answering(Collection("c", {}, {}, {"q": grades})) == expected


def test_judged_answers_and_negatives() -> None:
    source = JudgedSource("pydocs/val", 64, max_size=5, negatives=Negatives(near=1, siblings=0))
    for number, record in enumerate(source):
        qid, _, turn = record.qid.rpartition(":")
        grades = source.collection.qrels[qid]
        assert (record.query, turn) == (source.collection.queries[qid], str(number))
        assert grades[chosen(record).docid] == max(grades.values())
        assert all(grades.get(docid, 0) == 0 for docid in others(record))
    assert len({record.qid.rpartition(":")[0] for record in source}) == 32


def test_what_judgements_name_in_vain_is_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", *({"_id": str(i), "text": text(i)} for i in range(9)))
    write_lines(tmp_path / "queries.jsonl", *({"_id": qid, "text": "river1"} for qid in ("q1", "q2", "q3")))
    write_lines(tmp_path / "qrels.txt", b"q1 0 1 1", b"q1 0 x 2", b"q1 0 y 0", b"q2 0 x 1", b"q3 0 1 0")
    source = JudgedSource(str(tmp_path), 3)
    for _ in range(2):
        assert {record.qid.partition(":")[0] for record in source} == {"q1"}
        assert [line.removeprefix(f"{tmp_path}: ") for line in source.skipped] == [
            "query 'q1': there is no document 'x'",
            "query 'q2': there is no document 'x'",
            "query 'q2': none of its relevant documents is there",
        ]


def test_near_and_siblings() -> None:
    source = PointingSource("pydocs", 30, negatives=Negatives(near=1, siblings=0))
    bm25 = Bm25(source.collection)
    for record in source:
        near = {passage.docid for passage in bm25.neighbours(record.query, NEAR)}
        if len({name(docid) for docid in near}) > 3:
            assert set(others(record)) <= near


def test_siblings(small: str) -> None:
    for record in PointingSource(small, 50, max_size=3, negatives=Negatives(near=0, siblings=1)):
        assert {docid[0] for docid in others(record)} == {chosen(record).docid[0]}


@pytest.mark.parametrize("siblings", [0.0, 1.0])
def test_exhausted_pools_give_way(siblings: float, small: str) -> None:
    records = list(PointingSource(small, 20, min_size=15, max_size=15, negatives=Negatives(0, siblings)))
    assert {len(record.passages) for record in records} == {15}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": 0}, "windows 0 must be at least 1"),
        ({"min_size": 1}, r"sizes 1\.\.2 go from 2 up"),
        ({"min_size": 3}, r"sizes 3\.\.2"),
        ({"max_size": 21}, "holds 20 documents, max_size is 21"),
        ({"min_words": 99}, "holds no document of 99 words"),
    ],
)
def test_wrong_arguments(arguments: dict[str, int], message: str, small: str) -> None:
    with pytest.raises(UserError, match=message):
        PointingSource(small, **arguments)  # type: ignore[arg-type]


def test_wrong_settings(small: str) -> None:
    with pytest.raises(UserError, match="at most 1 together"):
        Negatives(0.6, 0.6)
    with pytest.raises(UserError, match="weights of 0 or more"):
        Queries(span=0)
    with pytest.raises(UserError, match="has no question with a relevant document"):
        JudgedSource(small)
    with pytest.raises(UserError, match="MixedSource needs one source"):
        MixedSource([])


def test_mixed(small: str) -> None:
    one, other = PointingSource(small, 3), JudgedSource("pydocs/val", 4)
    assert list(MixedSource([one, other])) == [*one, *other]


def test_choices_survive_rows_and_files(small: str, tmp_path: Path) -> None:
    records = list(PointingSource(small, 5, min_size=3, max_size=3))
    write_jsonl(records, tmp_path / "r.jsonl")
    assert list(JsonlSource(tmp_path / "r.jsonl")) == [to_record(to_row(record)) for record in records] == records


@pytest.mark.parametrize("choices", [0, 3])
def test_broken_choices(choices: int) -> None:
    with pytest.raises(UserError, match=f"choices is {choices}; it counts places"):
        RankingRecord("q", "Q", (Passage("a", "A"), Passage("b", "B")), (2, 1), choices)


def test_known_places_stay_in_windows() -> None:
    record = RankingRecord("q", "Q", tuple(Passage(d, d) for d in "abcde"), (4, 2, 1, 3, 5), 2)
    assert record.known == (4, 2)
    window = Window.of(record, [0, 1, 4])
    assert (window.permutation, window.choices) == ((2, 1, 3), 1)
    for index in range(50):
        drawn = Augmentation(2, 4).draw(record, generator(0, 0, index))
        assert drawn.permutation
        assert drawn.choices == 2
        assert [drawn.passages[i - 1].docid for i in drawn.permutation[:2]] == ["d", "b"]
