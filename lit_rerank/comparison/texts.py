"""What queries ask and passages say, where candidates tell it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_modules.sources.detect import open_candidates


@dataclass
class Texts:
    """Texts of queries by qid, and of passages by qid and docid: a docid may mean one query's candidate alone."""

    queries: dict[str, str] = field(default_factory=dict)
    passages: dict[tuple[str, str], str] = field(default_factory=dict)


def read_texts(paths: Sequence[str]) -> Texts:
    """The texts in files of candidates (any layout that `rerank` takes)."""
    texts = Texts()
    for path in paths:
        for record in open_candidates(path):
            texts.queries[record.qid] = record.query
            texts.passages.update(((record.qid, passage.docid), passage.text) for passage in record.passages)
    return texts
