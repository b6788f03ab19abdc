"""What sources of first-stage lists share: judgements, a depth, and who teaches an order where no model did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, Source, existing_file
from data_modules.trec import Qrels, read_qrels
from lit_rerank.errors import UserError

Teacher = Literal["none", "first_stage", "qrels"]


class RetrievalSource(Source[RankingRecord]):
    """One record for each query with its candidates in first-stage order.

    Args:
        qrels: judgements; a query that they leave out has none. None: nothing is judged.
        depth: keep only the first so many candidates; None: all.
        teacher: see `taught`.
        on_error: `raise` or `skip`.
    """

    def __init__(self, qrels: Qrels | None, depth: int | None, teacher: Teacher, on_error: OnError) -> None:
        super().__init__(on_error)
        if depth is not None and depth < 1:
            raise UserError(f"depth is {depth}; it must be at least 1")
        if teacher not in get_args(Teacher):
            raise UserError(f"teacher is {teacher!r}; it must be 'none', 'first_stage' or 'qrels'")
        if teacher == "qrels" and qrels is None:
            raise UserError("teacher is 'qrels', but there are no qrels: name them, or take another teacher")
        self.qrels = qrels or {}
        self.depth = depth
        self.teacher = teacher

    def _ranking(self, qid: str, query: str, passages: tuple[Passage, ...]) -> RankingRecord:
        qrels = self.qrels.get(qid)
        return RankingRecord(qid, query, passages, taught(self.teacher, qid, passages, qrels), qrels=qrels)


class RetrievalFileSource(RetrievalSource):
    """First-stage lists in a file of their own.

    Args:
        path: the file.
        qrels: TREC judgements; a query that they leave out has none.
        depth: keep (and check) only the first so many candidates.
        teacher: whose order is to be learned: `first_stage`, `qrels` (by grade, then by first stage) or `none`.
        on_error: `raise` or `skip`, for the rows of `path`; broken qrels always raise.
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


def taught(
    teacher: Teacher, qid: str, passages: Sequence[Passage], qrels: Mapping[str, int] | None
) -> tuple[int, ...] | None:
    """The order of `passages` (given in first-stage order) that `teacher` teaches, as identifiers, best first.

    `none` teaches no order; `first_stage` its own; `qrels` the highest grade first (unjudged passages count as 0)
    and, within a grade, the first stage's order.

    Raises:
        UserError: where `qrels` shall teach and the query is not judged.
    """
    identifiers = range(1, len(passages) + 1)
    if teacher == "none":
        return None
    if teacher == "first_stage":
        return tuple(identifiers)
    if qrels is None:
        raise UserError(f"query {qid!r} is not judged, so qrels teach no order; `on_error: skip` leaves it out")
    return tuple(sorted(identifiers, key=lambda i: -qrels.get(passages[i - 1].docid, 0)))
