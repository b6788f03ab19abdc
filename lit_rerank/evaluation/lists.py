"""The first-stage lists that commands read, and what is judged of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from data_modules.catalogue import open_collection
from data_modules.first_stage import open_first_stage
from data_modules.naming import named
from data_modules.records import RankingRecord
from data_modules.sources.detect import open_candidates
from data_modules.trec import check_writable, read_qrels
from lit_rerank.errors import UserError

NOT_LISTED = "judged queries have no list of candidates and do not count"
NOT_JUDGED = "queries have no judgement and do not count"


@dataclass(frozen=True)
class JudgedLists:
    """Lists with what is judged of them.

    Attributes:
        records: the lists; they can be written as a run.
        unlisted: judged queries that have no list. None is missing where only the first so many were asked for.
    """

    records: list[RankingRecord]
    unlisted: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many queries there are, and how many do not count."""
        return {
            "queries": len(self.records),
            "judged_queries": sum(bool(record.qrels) for record in self.records),
            "judged_without_list": len(self.unlisted),
        }


def judged_lists(
    candidates: str | None,
    first_stage: str | None,
    collection: str | None,
    qrels: str | None,
    depth: int,
    queries: int | None,
) -> JudgedLists:
    """The first-stage lists to rerank, judged by `qrels` or else by what they or the collection bring.

    Says which queries do not count, on either side.

    Raises:
        UserError: where there are none, or `qrels` is about other queries.
    """
    records, grades = first_stage_lists(candidates, first_stage, collection, depth, queries)
    if qrels is not None:
        grades = read_qrels(qrels)
        records = [replace(record, qrels=grades.get(record.qid)) for record in records]
        if not any(record.qrels for record in records):
            raise UserError(
                f"{qrels} judges none of the {len(records)} queries of {candidates or collection}: "
                "are they of one collection?"
            )
    listed = {record.qid for record in records}
    unlisted = [qid for qid in grades if qid not in listed] if queries is None else []
    say_which(unlisted, NOT_LISTED)
    if any(record.qrels for record in records):
        say_which([record.qid for record in records if not record.qrels], NOT_JUDGED)
    elif collection is not None:
        print(f"{collection} judges none of the {len(records)} queries: how good the lists are is not measured")
    return JudgedLists(records, unlisted)


def first_stage_lists(
    candidates: str | None, first_stage: str | None, collection: str | None, depth: int, queries: int | None
) -> tuple[list[RankingRecord], Mapping[str, Mapping[str, int]]]:
    """The lists of a file, or those that a first stage retrieves from a collection; and what that judges.

    Raises:
        UserError: where there are none, or they cannot be written as a run.
    """
    if queries is not None and queries < 1:
        raise UserError(f"queries is {queries}; it must be at least 1")
    grades: Mapping[str, Mapping[str, int]] = {}
    if candidates is not None and first_stage is None and collection is None:
        records = list(open_candidates(candidates))[:queries]
    elif candidates is None and first_stage is not None and collection is not None:
        opened = open_collection(collection)
        grades = opened.qrels
        chosen = dict(islice(opened.queries.items(), queries))
        records = open_first_stage(first_stage, opened).search(chosen, depth) if chosen else []
    else:
        raise UserError("name either --candidates FILE, or --first_stage NAME together with --collection NAME")
    if not records:
        raise UserError(f"{candidates or collection} holds no query")
    check_writable(records)
    return records, grades


def say_which(qids: Sequence[str], what: str, whose: str | None = None) -> None:
    """Say which queries something is true of, if there are any."""
    if qids:
        print(f"{'' if whose is None else f'{whose}: '}{len(qids)} {what}: {named(qids)}", flush=True)
