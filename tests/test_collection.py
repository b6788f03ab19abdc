"""Collections by name."""

from pathlib import Path

import pytest

from data_modules.catalogue import open_collection
from data_modules.collection import Document
from data_modules.trec import read_beir_qrels
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

CORPUS = [{"_id": "a", "text": "A", "title": "Title"}, {"_id": "b", "text": "B", "title": ""}]
QUERIES = [{"_id": "1", "text": "first"}, {"_id": "2", "text": "of another split"}]
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """BEIR's layout."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl.gz", *CORPUS)
    write_lines(folder / "queries.jsonl", *QUERIES)
    (folder / "qrels" / "test.tsv").write_text(f"{HEADER}1\tb\t2\n")
    return folder


def test_beir(folder: Path) -> None:
    collection = open_collection(str(folder))
    assert collection.documents == {"a": Document("a", "A", "Title"), "b": Document("b", "B")}
    assert collection.documents["a"].passage.text == "Title: A"
    assert collection.queries == {"1": "first"}
    assert collection.qrels == {"1": {"b": 2}}


def test_without_judgements_all_queries_are_there(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    collection = open_collection(str(folder))
    assert collection.queries == {"1": "first", "2": "of another split"}
    assert collection.qrels == {}


def test_cranfields_layout(tmp_path: Path) -> None:
    write_lines(tmp_path / "docs.jsonl", {"docid": "a", "text": ""})
    (tmp_path / "queries.tsv").write_text("1\tfirst\n2\tsecond\n")
    (tmp_path / "qrels.txt").write_text("1 0 a 4\n")
    collection = open_collection(str(tmp_path))
    assert collection.documents == {"a": Document("a", "")}
    assert collection.queries == {"1": "first", "2": "second"}
    assert collection.qrels == {"1": {"a": 4}}


@pytest.mark.parametrize(("name", "line"), [("qrels.txt.gz", b"1 0 b 2"), ("qrels/test.tsv.gz", b"1\tb\t2")])
def test_packed_judgements(name: str, line: bytes, folder: Path) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    write_lines(folder / name, line)
    assert open_collection(str(folder)).qrels == {"1": {"b": 2}}


def test_a_corpus_file_is_documents_alone(folder: Path) -> None:
    collection = open_collection(str(folder / "corpus.jsonl.gz"))
    assert list(collection.documents) == ["a", "b"]
    assert collection.queries == collection.qrels == {}


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("corpus.jsonl.gz", "lacks corpus.jsonl, corpus.jsonl.gz, docs.jsonl or docs.jsonl.gz"),
        ("queries.jsonl", "lacks queries.jsonl, queries.jsonl.gz, queries.tsv or queries.tsv.gz"),
    ],
)
def test_an_incomplete_directory(name: str, missing: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=missing):
        open_collection(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("queries.jsonl", '{"_id": "1"}\n', r'queries\.jsonl:1: "text" \(or query\) is missing'),
        ("queries.jsonl", '{"_id": "1", "text": " "}\n', r"queries\.jsonl:1: query '1' has no text"),
        ("qrels/test.tsv", f"{HEADER}1\tb\n", r"test\.tsv:2: has 2 columns, not the 3 of `query-id corpus-id score`"),
        ("qrels/test.tsv", f"{HEADER}1\tb\thigh\n", r"test\.tsv:2: the grade must be a whole number, not 'high'"),
    ],
)
def test_broken_files(name: str, content: str, message: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_collection(str(folder))


def test_a_byte_order_mark_before_beirs_header(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text(f"{HEADER}1\tb\t2\n", encoding="utf-8-sig")
    assert open_collection(str(folder)).qrels == {"1": {"b": 2}}


def test_beirs_judgements_need_no_header(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("1\tb\t2\n1\ta\t0\n")
    assert read_beir_qrels(tmp_path / "test.tsv") == {"1": {"b": 2, "a": 0}}


@pytest.mark.parametrize("name", ["nothing", "pydocs/dev", "absent/"])
def test_an_unknown_name_is_answered_with_what_is_possible(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        open_collection(name)
    said = str(raised.value)
    assert said.startswith(f"there is no collection {name!r}; possible are pydocs, pydocs/train, pydocs/val, ")
    assert "ir_datasets:ID" in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["pydocs", "pydocs/train", "pydocs/val", "pydocs/test"])
def test_pydocs(name: str) -> None:
    pytest.importorskip("data_modules.pydocs")
    collection = open_collection(name)
    assert collection.documents
    assert collection.queries.keys() == collection.qrels.keys()
    assert all(docid in collection.documents for grades in collection.qrels.values() for docid in grades)


def test_cranfield(shared_data: Path) -> None:
    collection = open_collection(str(shared_data / "cranfield"))
    assert (len(collection.documents), len(collection.queries), len(collection.qrels)) == (1400, 225, 225)
    assert [docid for docid, document in collection.documents.items() if not document.text] == ["471", "995"]
