"""First-stage candidates, with judgements where there are any."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data_modules.records import RankingRecord
from data_modules.sources.base import OnError, Row, Source, each, existing_file, passage, text
from data_modules.trec import read_qrels
from lit_rerank.errors import UserError

Teacher = Literal["none", "first_stage"]


class CandidatesSource(Source[RankingRecord]):
    """One record for each query with its candidates in first-stage order.

        {"qid": str, "query": str, "candidates": [{"docid": str, "text": str, "score"?: float}, ...]}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        qrels: TREC judgements; a query that they leave out has none.
        depth: keep (and check) only the first so many candidates.
        teacher: `first_stage` makes the order of the candidates the one to learn.
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
        super().__init__(on_error)
        if depth is not None and depth < 1:
            raise UserError(f"depth is {depth}; it must be at least 1")
        if teacher not in ("none", "first_stage"):
            raise UserError(f"teacher is {teacher!r}; it must be 'none' or 'first_stage'")
        self.path = existing_file(path)
        self.qrels = {} if qrels is None else read_qrels(qrels)
        self.depth = depth
        self.teacher = teacher

    def _read(self) -> Iterator[RankingRecord]:
        return self._jsonl(self.path, self._record)

    def _record(self, row: Row) -> RankingRecord:
        qid = text(row, "qid")
        passages = each(row, "candidates", passage, limit=self.depth)
        return RankingRecord(
            qid=qid,
            query=text(row, "query"),
            passages=passages,
            permutation=tuple(range(1, len(passages) + 1)) if self.teacher == "first_stage" else None,
            qrels=self.qrels.get(qid),
        )
