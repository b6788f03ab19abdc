"""What queries ask and passages say, where candidates or a collection tell it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_modules.collection import Collection
from data_modules.sources.detect import open_candidates


@dataclass
class Texts:
    """Texts of queries by qid, of candidates by qid and docid (which may mean one query's alone), and of a
    collection's documents by docid."""

    queries: dict[str, str] = field(default_factory=dict)
    candidates: dict[tuple[str, str], str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)

    def passage(self, qid: str, docid: str) -> str | None:
        """What a passage says, if that is known."""
        return self.candidates.get((qid, docid), self.documents.get(docid))


def read_texts(paths: Sequence[str], collection: Collection | None) -> Texts:
    """The texts of a collection and of files of candidates (any layout that `rerank` takes)."""
    texts = Texts()
    if collection is not None:
        texts.queries.update(collection.queries)
        texts.documents.update((docid, document.passage.text) for docid, document in collection.documents.items())
    for path in paths:
        for record in open_candidates(path):
            texts.queries[record.qid] = record.query
            texts.candidates.update(((record.qid, passage.docid), passage.text) for passage in record.passages)
    return texts
