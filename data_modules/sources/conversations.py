"""The conversations in which RankVicuna's and RankZephyr's training sets are published."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, Row, Source, as_object, each, field, is_text, is_whole, read_lines, text
from lit_rerank.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.json)(?<!\.jsonl)(?<!\.gz)")
COUNT = re.compile(r"I will provide you with ([1-9][0-9]{0,3}) passages")
QUERY = re.compile(r"query:(.*)", re.IGNORECASE)
IDENTIFIER = re.compile(r"^\[([0-9]+)\]", re.MULTILINE)
CLOSING = re.compile(r"^(?:Search Query:.*\n\s*)?Rank the [0-9]+ passages above", re.MULTILINE | re.IGNORECASE)
ANSWER = re.compile(r"\[([0-9]{1,4})\]")
BLANK = " \t\r\n"  # what str.strip takes besides, such as U+0085, belongs to the text


class ConversationsSource(Source[RankingRecord]):
    """One record for each conversation; its id is the qid, and `id:1`, `id:2`, ... are the docids.

        {"id": str or int, "conversations": [{"from": "system", "value": "..."},
         {"from": "human", "value": "I will provide you with 2 passages, ... the search query: Q.\\n\\n[1] text\\n
                                     [2] text\\n\\nSearch Query: Q.\\n\\nRank the 2 passages above ..."},
         {"from": "gpt", "value": "[2] > [1]"}]}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, a JSON array (`.json`, `.json.gz`), a directory of dataset files,
            or a dataset on the Hub, such as `castorini/rank_zephyr_training_data`.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = Path(path).expanduser()
        if not self.path.exists() and not HUB_ID.fullmatch(str(path)):
            raise UserError(f"{path} does not exist, and is no Hub id such as castorini/rank_zephyr_training_data")

    def _read(self) -> Iterator[RankingRecord]:
        if ".jsonl" in self.path.suffixes:
            return self._jsonl(self.path, _record)
        rows = _array(self.path) if self.path.is_file() else _dataset(self.path)
        numbered = ((f"{self.path}: record {number}", row) for number, row in enumerate(rows, start=1))
        return self._build(numbered, lambda row: _record(as_object(row)))


def _array(path: Path) -> list[Any]:
    lines = list(read_lines(path))
    try:
        rows = json.loads(b"".join(line for _, line in lines))
    except json.JSONDecodeError as error:
        place = lines[min(error.lineno, len(lines)) - 1][0] if lines else path
        raise UserError(f"{place}: not valid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not usable JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: must hold a JSON array; a file with one object a line is to be named .jsonl")
    return rows


def _dataset(path: Path) -> Iterable[Any]:
    from datasets import load_dataset

    try:
        rows: Iterable[Any] = load_dataset(str(path), split="train")
    except Exception as error:  # whatever the Hub, the network or the files may bring
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be loaded, neither from disk nor from the Hub: {reason}") from error
    return rows


def _record(row: Row) -> RankingRecord:
    qid = str(field(row, "id", _is_id, "a string or a whole number"))
    turns = each(row, "conversations", lambda turn: (text(turn, "from"), text(turn, "value")))
    query, passages = _prompt(_turn(turns, "human"))
    return RankingRecord(
        qid=qid,
        query=query,
        passages=tuple(Passage(f"{qid}:{i}", passage) for i, passage in enumerate(passages, start=1)),
        permutation=tuple(int(identifier) for identifier in ANSWER.findall(_turn(turns, "gpt"))),
    )


def _is_id(value: Any) -> TypeGuard[str | int]:
    return is_text(value) or is_whole(value)


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
