"""First-stage candidates, with judgements where there are any."""

from collections.abc import Iterator

from data_modules.records import RankingRecord
from data_modules.sources.base import Row, each, passage, text
from data_modules.sources.retrieval import RetrievalFileSource


class CandidatesSource(RetrievalFileSource):
    """One record for each query with its candidates in first-stage order.

        {"qid": str, "query": str, "candidates": [{"docid": str, "text": str, "score"?: float}, ...]}

    `path` is a `.jsonl` or `.jsonl.gz` file; the other arguments are `RetrievalFileSource`'s.
    """

    def _read(self) -> Iterator[RankingRecord]:
        return self._jsonl(self.path, self._record)

    def _record(self, row: Row) -> RankingRecord:
        passages = each(row, "candidates", passage, limit=self.depth)
        return self._ranking(text(row, "qid"), text(row, "query"), passages)
