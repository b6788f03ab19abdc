"""RankLLM's requests."""

from collections.abc import Iterator

from data_modules.collection import Document
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import Row, as_object, each, first_of, identifier, score, text
from data_modules.sources.retrieval import RetrievalFileSource
from lit_rerank.errors import UserError

# What the text of a document may be called, in the order in which RankLLM looks for it.
TEXTS = ("text", "segment", "contents", "content", "body", "passage")


class RankLLMSource(RetrievalFileSource):
    """One record for each request, its candidates in the order of the file, as RankLLM takes them.

        {"query": {"text": str, "qid": str or int},
         "candidates": [{"docid": str or int, "score": float, "doc": {"contents": str, "title"?: str}}, ...]}

    or, as older versions and RankGPT have it, the query's id in its hits:

        {"query": str, "hits": [{"qid": str or int, "docid": str or int, "score": float, "content": str}, ...]}

    The text may be called text, segment, contents, content, body or passage; a title leads it.

    `path` is a JSON array (`.json`, `.json.gz`), or one request a line (`.jsonl`, `.jsonl.gz`); the other
    arguments are `RetrievalFileSource`'s.
    """

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
