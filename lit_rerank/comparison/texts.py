"""What queries ask and passages say, where candidates or a collection tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_modules.collection import Collection, Document
from data_modules.sources.detect import open_candidates
from lit_rerank.comparison.systems import Judgements
from lit_rerank.errors import UserError


@dataclass
class Texts:
    """Texts of queries by qid, of candidates by qid and docid (which may mean one query's alone), and a collection's
    documents by docid, which an index reads when they are asked for."""

    queries: dict[str, str] = field(default_factory=dict)
    candidates: dict[tuple[str, str], str] = field(default_factory=dict)
    documents: Mapping[str, Document] = field(default_factory=dict)

    def passage(self, qid: str, docid: str) -> str | None:
        """What a passage says, if that is known."""
        if (qid, docid) in self.candidates:
            return self.candidates[qid, docid]
        try:
            document = self.documents.get(docid)
        except UserError:  # an index need not store its texts, and the page does without
            return None
        return None if document is None else document.passage.text


def read_texts(paths: Sequence[str], collection: Collection | None, judged: Judgements) -> Texts:
    """The texts of a collection and of files of candidates (any layout that `rerank` takes).

    Raises:
        UserError: where one names queries, but none that is judged.
    """
    texts = Texts()
    if collection is not None:
        _check_judged(collection.name, collection.queries, judged)
        texts.queries.update(collection.queries)
        texts.documents = collection.documents
    for path in paths:
        records = list(open_candidates(path))
        _check_judged(path, {record.qid: record.query for record in records}, judged)
        for record in records:
            texts.queries[record.qid] = record.query
            texts.candidates.update(((record.qid, passage.docid), passage.text) for passage in record.passages)
    return texts


def _check_judged(source: str, queries: Mapping[str, str], judged: Judgements) -> None:
    if queries and queries.keys().isdisjoint(judged):
        raise UserError(f"none of the {len(queries)} queries of {source} is judged: is it of the runs' collection?")
