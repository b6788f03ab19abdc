"""RankGPT's permutations of MS MARCO, beside the file of queries and passages that they order."""

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import (
    OnError,
    Source,
    each,
    existing_file,
    first_of,
    identifier,
    is_text,
    read_array,
    read_rows,
    text,
    to_object,
)
from lit_rerank.errors import UserError

IDENTIFIER = re.compile("[0-9]{1,9}")


class RankGPTSource(Source[RankingRecord]):
    """One record for each query, its number in the file (from 1) being its qid.

    Two files, as RankGPT publishes them (`marco-train-100k.jsonl` beside `marco-train-100k-gpt3.5.json`):

        candidates: {"query": str, "positive_passages": [{"docid", "text"}], "retrieved_passages": [{"docid", "text"}]}
        responses:  ["[2] > [1] > [3]", ...]  one for each query, in the same order

    A response counts passages from 1, with or without brackets. One that leaves passages out or repeats them is
    broken; RankGPT's own reader repairs those, `on_error: skip` leaves them out. `positive_passages`, where present,
    are the judgements, of grade 1. The passages may be called `hits`, their texts `content`. Titles are not read, as
    in RankGPT's own reader.

    Args:
        candidates: one query a line (`.jsonl`, `.jsonl.gz`) or a JSON array.
        responses: a JSON array (`.json`, `.json.gz`).
        on_error: `raise` or `skip`, for single queries; files that do not belong together always raise.
    """

    def __init__(self, candidates: str | Path, responses: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.candidates = existing_file(candidates)
        self.responses = existing_file(responses)

    def _read(self) -> Iterator[RankingRecord]:
        return self._build(self._pairs(), _record)

    def _pairs(self) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
        """Each query's place, with its number, row and response."""
        responses, number = read_array(self.responses), 0
        for number, (place, row) in enumerate(read_rows(self.candidates), start=1):
            if number <= len(responses):
                yield place, (number, row, responses[number - 1])
        if number != len(responses):
            raise UserError(
                f"{self.responses} holds {len(responses)} responses to the {number} queries of {self.candidates}: "
                "name two files that belong together"
            )


def _record(numbered: tuple[int, Any, Any]) -> RankingRecord:
    number, raw, response = numbered
    row = to_object(raw)
    if not is_text(response):
        raise UserError(f"response {number} must be a string such as '[2] > [1]', not {reprlib.repr(response)}")
    positive = each(row, "positive_passages", lambda passage: identifier(passage, "docid")) if _is_judged(row) else None
    return RankingRecord(
        qid=str(number),
        query=text(row, "query"),
        passages=each(row, first_of(row, "retrieved_passages", "hits"), _passage),
        permutation=tuple(map(int, IDENTIFIER.findall(response))),
        qrels=None if positive is None else dict.fromkeys(positive, 1),
    )


def _is_judged(row: dict[str, Any]) -> bool:
    return row.get("positive_passages") is not None


def _passage(row: dict[str, Any]) -> Passage:
    return Passage(identifier(row, "docid"), text(row, first_of(row, "text", "content")))
