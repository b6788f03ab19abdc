"""A collection's queries with what a first stage retrieves for them."""

from collections.abc import Iterator

from data_modules import catalogue  # the module: it imports sources itself
from data_modules.first_stage import open_first_stage
from data_modules.records import RankingRecord
from data_modules.sources.retrieval import RetrievalSource, Teacher


class SearchedSource(RetrievalSource):
    """One record for each query of a collection, its candidates in first-stage order, with the judgements.

    Args:
        collection: see `open_collection`.
        first_stage: what retrieves: bm25 or pyserini.
        depth: so many candidates for each query.
        teacher: `none`, `first_stage` or `qrels`: who orders them.
        shuffle: a seed: show them in random order, without a teacher; null: as they were retrieved.
    """

    def __init__(
        self,
        collection: str,
        first_stage: str = "bm25",
        depth: int = 100,
        teacher: Teacher = "none",
        shuffle: int | None = None,
    ) -> None:
        opened = catalogue.open_collection(collection)
        super().__init__({qid: dict(grades) for qid, grades in opened.qrels.items()}, depth, teacher, "raise")
        self.collection, self.shuffle, self.most = opened, shuffle, depth
        self.first_stage = open_first_stage(first_stage, opened)

    def _read(self) -> Iterator[RankingRecord]:
        for found in self.first_stage.search(self.collection.queries, self.most):
            record = self._ranking(found.qid, found.query, found.passages)
            yield record if self.shuffle is None else record.shuffled(self.shuffle)
