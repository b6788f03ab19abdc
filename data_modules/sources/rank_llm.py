"""RankLLM's requests."""

from collections.abc import Iterator
from pathlib import Path

from data_modules.collection import Document
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, Row, as_object, each, existing_file, first_of, identifier, score, text
from data_modules.sources.retrieval import RetrievalSource, Teacher
from data_modules.trec import read_qrels
from lit_rerank.errors import UserError

# What the text of a document may be called, in the order in which RankLLM looks for it.
TEXTS = ("text", "segment", "contents", "content", "body", "passage")


class RankLLMSource(RetrievalSource):
    """One record for each request, its candidates in the order of the file, as RankLLM takes them.

        {"query": {"text": str, "qid": str or int},
         "candidates": [{"docid": str or int, "score": float, "doc": {"contents": str, "title"?: str}}, ...]}

    or, as older versions and RankGPT have it, the query's id in its hits:

        {"query": str, "hits": [{"qid": str or int, "docid": str or int, "score": float, "content": str}, ...]}

    The text may be called text, segment, contents, content, body or passage; a title leads it.

    Args:
        path: a JSON array (`.json`, `.json.gz`), or one request a line (`.jsonl`, `.jsonl.gz`).
        qrels: TREC judgements; a query that they leave out has none.
        depth: keep (and check) only the first so many candidates.
        teacher: whose order is to be learned: `first_stage`, `qrels` (by grade, then by first stage) or `none`.
        on_error: `raise` or `skip`, for the requests of `path`; broken qrels always raise.
    """

    def __init__(
        self,
        path: str | Path,
        qrels: str | Path | None = None,
        depth: int | None = None,
        teacher: Teacher = "none",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(None if qrels is None else read_qrels(qrels), depth, teacher, on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[RankingRecord]:
        return self._json(self.path, self._request)

    def _request(self, row: Row) -> RankingRecord:
        name = first_of(row, "candidates", "hits")
        qid, query = _query(row, name)
        return self._ranking(qid, query, each(row, name, hit, limit=self.depth))


def hit(row: Row) -> Passage:
    """A candidate with its document in `doc`, or with the document's fields among its own."""
    doc = as_object(row["doc"]) if "doc" in row else row
    title = text(doc, "title") if doc.get("title") is not None else ""
    docid = identifier(row, "docid")
    return Passage(docid, Document(docid, text(doc, first_of(doc, *TEXTS)), title).passage.text, score(row))


def _query(row: Row, name: str) -> tuple[str, str]:
    """Id and text of the query of a request whose candidates are called `name`."""
    query = row.get("query")
    if isinstance(query, dict):
        try:
            return identifier(query, "qid"), text(query, "text")
        except UserError as error:
            raise UserError(f'"query": {error}') from None
    query = text(row, "query")
    (qid,) = each(row, name, lambda hit: identifier(hit, "qid"), limit=1) or ("",)
    return qid, query
