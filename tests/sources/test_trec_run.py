"""A TREC run with its documents and queries."""

from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage, RankingRecord
from data_modules.sources import TrecSource
from data_modules.sources.base import OnError
from data_modules.sources.corpus import DocumentsSource, QueriesSource
from lit_rerank.errors import UserError
from tests.sources.lines import Row, write_lines

RUN = "q1 Q0 a 1 1.5 t\nq1 Q0 b 2 2.5 t\nq1 Q0 c 3 0.5 t\nq2 Q0 b 1 1 t\n"
DOCUMENTS: list[Row] = [
    {"docid": "a", "text": ""},
    {"_id": "b", "text": "B", "title": "Title"},
    {"id": "c", "contents": "C\x85", "title": ""},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "run.txt").write_text(RUN)
    (tmp_path / "queries.tsv").write_bytes(b"\xef\xbb\xbfq1\tfirst\twith a tab\r\n\nq2\tsecond\n")
    (tmp_path / "qrels.txt").write_text("q1 0 c 3\nq1 0 a 1\n")
    documents = write_lines(tmp_path / "docs.jsonl.gz", *DOCUMENTS)
    return {"run": tmp_path / "run.txt", "documents": documents, "queries": tmp_path / "queries.tsv"}


def test_lists_come_in_the_order_of_the_scores(files: dict[str, Path], tmp_path: Path) -> None:
    first, second = TrecSource(**files, qrels=tmp_path / "qrels.txt")
    passages = (Passage("b", "Title: B", 2.5), Passage("a", "", 1.5), Passage("c", "C\x85", 0.5))
    assert first == RankingRecord("q1", "first\twith a tab", passages, qrels={"c": 3, "a": 1})
    assert (second.qid, second.query, second.qrels) == ("q2", "second", None)


def test_depth_and_teachers(files: dict[str, Path], tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    assert [len(record.passages) for record in TrecSource(**files, depth=2)] == [2, 1]
    assert [record.permutation for record in TrecSource(**files, teacher="first_stage")] == [(1, 2, 3), (1,)]
    source = TrecSource(**files, qrels=qrels, teacher="qrels", on_error="skip")
    assert [record.permutation for record in source] == [(3, 2, 1)]
    assert len(source.skipped) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents", b'{"docid": "b", "text": "B"}\n', "query 'q1' lists docid 'a', which .*docs.jsonl lacks"),
        ("queries", b"q2\tsecond\n", "queries.tsv lacks query 'q1'"),
        ("queries", b"q1\tfirst\nq2\n", "queries.tsv:2: must be a qid, a tab and a query"),
        ("queries", b"q1\tfirst\nq2\t \n", "queries.tsv:2: must be a qid, a tab and a query"),
        ("queries", b"q1\tfirst\nq2\t\xff\n", "queries.tsv:2: not UTF-8: byte 4"),
        ("run", b"q1 Q0 a 1 1.5\n", "run.txt:1: has 5 columns"),
    ],
)
def test_broken_files(name: str, content: bytes, message: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl" if name == "documents" else files[name]
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        list(TrecSource(**files | {name: path}))
    assert "\n" not in str(raised.value)


def test_what_is_left_out_is_counted_over_all_files(files: dict[str, Path], tmp_path: Path) -> None:
    documents = write_lines(tmp_path / "docs.jsonl", *DOCUMENTS[:2], b"{")
    source = TrecSource(files["run"], documents, files["queries"], on_error="skip")
    for _ in range(2):
        assert [record.qid for record in source] == ["q2"]
        assert len(source.skipped) == 2
        assert source.skipped[0].startswith(f"{documents}:3: not valid JSON")
        assert "lists docid 'c'" in source.skipped[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "B"}, '"docid" (or _id, id) is missing'),
        ({"docid": "b"}, '"text" (or contents) is missing'),
        ({"docid": "a", "text": "B"}, "docid 'a' stands further up, too"),
        ({"docid": "b", "text": "B", "title": 1}, '"title" must be a string, not 1'),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_broken_documents(row: Row, message: str, on_error: OnError, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "docs.jsonl", DOCUMENTS[0], row)
    source = DocumentsSource(path, on_error)
    if on_error == "skip":
        assert [document.docid for document in source] == ["a"]
        assert source.skipped == [f"{path}:2: {message}"]
    else:
        with pytest.raises(UserError) as raised:
            list(source)
        assert str(raised.value) == f"{path}:2: {message}"


@pytest.mark.parametrize("row", [{"_id": 1, "text": "Q"}, {"qid": "1", "query": "Q"}, {"id": "1", "text": "Q"}])
def test_queries_as_json(row: Row, tmp_path: Path) -> None:
    assert list(QueriesSource(write_lines(tmp_path / "queries.jsonl", row))) == [("1", "Q")]
    with pytest.raises(UserError, match=r"queries\.jsonl:2: qid '1' stands further up, too"):
        list(QueriesSource(write_lines(tmp_path / "queries.jsonl", row, row)))


def test_cranfield(shared_data: Path) -> None:
    folder = shared_data / "cranfield"
    files: dict[str, Any] = {"run": "run.bm25.txt", "documents": "docs.jsonl.gz", "queries": "queries.tsv"}
    paths = {name: folder / file for name, file in files.items()}
    records = list(TrecSource(**paths, qrels=folder / "qrels.txt", teacher="qrels"))
    assert len(records) == 225
    assert {len(record.passages) for record in records} == {100}
    assert all(record.qrels and record.permutation for record in records)
    texts = {passage.docid: passage.text for record in records for passage in record.passages}
    assert all(text for docid, text in texts.items() if docid not in ("471", "995"))
