"""First-stage candidates, with judgements where there are any."""

from collections.abc import Iterator
from pathlib import Path

from data_modules.records import RankingRecord
from data_modules.sources.base import OnError, Row, each, existing_file, passage, text
from data_modules.sources.retrieval import RetrievalSource, Teacher
from data_modules.trec import read_qrels


class CandidatesSource(RetrievalSource):
    """One record for each query with its candidates in first-stage order.

        {"qid": str, "query": str, "candidates": [{"docid": str, "text": str, "score"?: float}, ...]}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        qrels: TREC judgements; a query that they leave out has none.
        depth: keep (and check) only the first so many candidates.
        teacher: whose order is to be learned: `first_stage`, `qrels` (by grade, then by first stage) or `none`.
        on_error: `raise` or `skip`, for the lines of `path`; broken qrels always raise.
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
        return self._jsonl(self.path, self._record)

    def _record(self, row: Row) -> RankingRecord:
        passages = each(row, "candidates", passage, limit=self.depth)
        return self._ranking(text(row, "qid"), text(row, "query"), passages)
