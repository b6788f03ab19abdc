"""A collection's queries with what a first stage retrieves for them."""

from collections.abc import Iterator

from data_modules import catalogue  # the module: it imports sources itself
from data_modules.first_stage import open_first_stage
from data_modules.records import RankingRecord
from data_modules.sources.base import OnError
from data_modules.sources.retrieval import RetrievalSource, Teacher
from lit_rerank.errors import UserError


class SearchedSource(RetrievalSource):
    """One record for each query of a collection, its candidates in first-stage order, with the judgements.

    Args:
        collection: see `open_collection`.
        first_stage: what retrieves: bm25 or pyserini.
        depth: so many candidates for each query.
        teacher: `none`, `first_stage` or `qrels`: who orders them.
        shuffle: a seed: show them in random order; null: as they were retrieved. It goes with teacher `none` alone.
        on_error: `raise` or `skip`, for queries that nobody judged where `qrels` teach.
    """

    def __init__(
        self,
        collection: str,
        first_stage: str = "bm25",
        depth: int = 100,
        teacher: Teacher = "none",
        shuffle: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if shuffle is not None and teacher != "none":
            raise UserError(
                f"shuffle is {shuffle} and teacher {teacher!r}: what is shuffled has no teacher; leave out one"
            )
        opened = catalogue.open_collection(collection)
        qrels = {qid: dict(grades) for qid, grades in opened.qrels.items()}
        super().__init__(qrels or None, depth, teacher, on_error)
        self.collection, self.shuffle, self.most = opened, shuffle, depth
        self.first_stage = open_first_stage(first_stage, opened)

    def _read(self) -> Iterator[RankingRecord]:
        lists = self.first_stage.search(self.collection.queries, self.most)
        return self._build(((self.collection.name, found) for found in lists), self._record)

    def _record(self, found: RankingRecord) -> RankingRecord:
        record = self._ranking(found.qid, found.query, found.passages)
        return record if self.shuffle is None else record.shuffled(self.shuffle)
