"""The conversations in which RankVicuna's and RankZephyr's training sets are published."""

import re
from collections.abc import Iterable
from pathlib import Path

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, Row, each, identifier, text
from data_modules.sources.dataset import DatasetSource
from lit_rerank.errors import UserError

COUNT = re.compile(r"I will provide you with ([1-9][0-9]{0,3}) passages")
QUERY = re.compile(r"query:(.*)", re.IGNORECASE)
IDENTIFIER = re.compile(r"^\[([0-9]+)\]", re.MULTILINE)
CLOSING = re.compile(r"^(?:Search Query:.*\n\s*)?Rank the [0-9]+ passages above", re.MULTILINE | re.IGNORECASE)
ANSWER = re.compile(r"\[([0-9]{1,4})\]")
BLANK = " \t\r\n"  # what str.strip takes besides, such as U+0085, belongs to the text


class ConversationsSource(DatasetSource[RankingRecord]):
    """One record for each conversation; its id is the qid, and `id:1`, `id:2`, ... are the docids.

        {"id": str or int, "conversations": [{"from": "system", "value": "..."},
         {"from": "human", "value": "I will provide you with 2 passages, ... the search query: Q.\\n\\n[1] text\\n
                                     [2] text\\n\\nSearch Query: Q.\\n\\nRank the 2 passages above ..."},
         {"from": "gpt", "value": "[2] > [1]"}]}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, a JSON array (`.json`, `.json.gz`), a `.parquet` file, a directory of
            dataset files, or a dataset on the Hub, such as `castorini/rank_zephyr_training_data`.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(path, on_error, example="castorini/rank_zephyr_training_data")

    def _record(self, row: Row) -> RankingRecord:
        return _record(row)


def _record(row: Row) -> RankingRecord:
    qid = identifier(row, "id")
    turns = each(row, "conversations", lambda turn: (text(turn, "from"), text(turn, "value")))
    query, passages = _prompt(_turn(turns, "human"))
    return RankingRecord(
        qid=qid,
        query=query,
        passages=tuple(Passage(f"{qid}:{i}", passage) for i, passage in enumerate(passages, start=1)),
        permutation=tuple(int(number) for number in ANSWER.findall(_turn(turns, "gpt"))),
    )


def _turn(turns: Iterable[tuple[str, str]], speaker: str) -> str:
    values = [value for who, value in turns if who == speaker]
    if len(values) != 1:
        raise UserError(f'"conversations" must hold one turn from {speaker!r}, not {len(values)}')
    return values[0]


def _prompt(turn: str) -> tuple[str, list[str]]:
    """The query and the passages' texts in a human turn."""
    count, closings = COUNT.search(turn), list(CLOSING.finditer(turn))
    if count is None:
        raise UserError('the human turn lacks "I will provide you with N passages"')
    if not closings:
        raise UserError('the human turn lacks "Rank the N passages above" on a line of its own after the passages')
    closing = closings[-1]
    marks = _marks(list(IDENTIFIER.finditer(turn, count.end(), closing.start())), int(count[1]))
    query = QUERY.search(turn, count.end(), marks[0].start()) or QUERY.search(turn, closing.start(), closing.end())
    if query is None:
        raise UserError('the human turn lacks "search query: ..."')
    ends = [mark.start() for mark in marks[1:]] + [closing.start()]
    passages = [turn[mark.end() : end].strip(BLANK) for mark, end in zip(marks, ends, strict=True)]
    return query[1].strip(BLANK).removesuffix("."), passages


def _marks(candidates: list[re.Match[str]], n: int) -> list[re.Match[str]]:
    """Where passages 1..n begin, among the lines that begin with an identifier: passages hold such lines too.

    The identifiers are looked for in sequence, from the first on and from the last back; where the two disagree,
    nobody can tell where a passage begins (but the first, which follows the query).
    """
    first = _in_sequence(candidates, range(1, n + 1))
    last = _in_sequence(candidates[::-1], range(n, 0, -1))[::-1]
    for i, (early, late) in enumerate(zip(first[1:], last[1:], strict=True), start=2):
        if early is not late:
            raise UserError(f"passage [{i}] could begin in more than one place")
    return first


def _in_sequence(candidates: Iterable[re.Match[str]], identifiers: Iterable[int]) -> list[re.Match[str]]:
    left = iter(candidates)
    found = []
    for i in identifiers:
        mark = next((mark for mark in left if mark[1] == str(i)), None)
        if mark is None:
            raise UserError(f"passage [{i}] is missing, or out of sequence")
        found.append(mark)
    return found
