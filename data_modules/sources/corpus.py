"""Documents and queries, in the layouts in which collections are shared."""

from collections.abc import Iterator
from pathlib import Path

from data_modules.collection import Document
from data_modules.files import decoded
from data_modules.sources.base import (
    OnError,
    Row,
    Source,
    existing_file,
    first_of,
    identifier,
    parse_object,
    read_lines,
    text,
)
from lit_rerank.errors import UserError


class DocumentsSource(Source[Document]):
    """A corpus, one document a line; BEIR's and Anserini's names of the fields are understood.

        {"docid" | "_id" | "id": str or int, "text" | "contents": str, "title"?: str}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[Document]:
        seen: set[str] = set()
        return self._jsonl(self.path, lambda row: _document(row, seen))


class QueriesSource(Source[tuple[str, str]]):
    """Pairs of qid and query: lines `qid<TAB>query` of a TSV file, or one object a line of a JSONL file.

        {"qid" | "_id" | "id": str or int, "text" | "query": str}

    Args:
        path: a `.tsv` or `.jsonl` file, or one of them gzipped.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[tuple[str, str]]:
        parse = _json_query if ".jsonl" in self.path.suffixes else _tsv_query
        seen: set[str] = set()
        return self._build(read_lines(self.path), lambda line: _once(parse(line), seen))


def _document(row: Row, seen: set[str]) -> Document:
    docid = identifier(row, "docid", "_id", "id")
    title = text(row, "title") if row.get("title") is not None else ""
    document = Document(docid, text(row, first_of(row, "text", "contents")), title)
    _unseen("docid", docid, seen)
    return document


def _json_query(line: bytes) -> tuple[str, str]:
    row = parse_object(line)
    qid, query = identifier(row, "qid", "_id", "id"), text(row, first_of(row, "text", "query"))
    if not query.strip():
        raise UserError(f"query {qid!r} has no text")
    return qid, query


def _tsv_query(line: bytes) -> tuple[str, str]:
    qid, tab, query = decoded(line).rstrip("\r\n").partition("\t")
    if not tab or not query.strip():
        raise UserError("must be a qid, a tab and a query")
    return qid, query


def _once(query: tuple[str, str], seen: set[str]) -> tuple[str, str]:
    _unseen("qid", query[0], seen)
    return query


def _unseen(what: str, name: str, seen: set[str]) -> None:
    if name in seen:
        raise UserError(f"{what} {name!r} stands further up, too")
    seen.add(name)
