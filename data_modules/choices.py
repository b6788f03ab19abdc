"""What a reranker chose in each window, written and read: JSONL, a window a line."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from data_modules.records import check_permutation
from data_modules.sources.base import (
    Row,
    Source,
    existing_file,
    field,
    is_list,
    is_number,
    is_text,
    is_whole,
    text,
    whole_numbers,
    write_rows,
)
from lit_rerank.errors import UserError


@dataclass(frozen=True)
class WindowChoices:
    """A window as it was read and ordered.

    Attributes:
        turn: how many windows of the query were read before.
        docids: the passages in the order in which the model read them.
        permutation: identifiers (1-based), best first.
        choices: so many of its places, from the first on, the model chose one by one.
        logps: of each place, log p of the choice in nats, over the identifiers that then remained (see `Decoded`); None
            where a generated text was read.
        malformed: whether that text needed repair: what was repaired, no choice tells.
        dealt: whether the passages were dealt at random (`Rounds`), and did not slide up.

    Raises:
        UserError: where these do not fit each other.
    """

    qid: str
    turn: int
    docids: tuple[str, ...]
    permutation: tuple[int, ...]
    choices: int
    logps: tuple[float, ...] | None = None
    malformed: bool = False
    dealt: bool = False

    def __post_init__(self) -> None:
        check_permutation(self.permutation, len(self.docids), self.qid)
        if not 1 <= self.choices <= len(self.docids):
            raise UserError(f'"choices" is {self.choices}; it counts places of the permutation, from 1 on')
        if self.logps is not None and len(self.logps) != len(self.docids):
            raise UserError(f'"logps" has {len(self.logps)} values for {len(self.docids)} passages')


class ChoicesSource(Source[WindowChoices]):
    """Each window of a file that `write_choices` wrote.

        {"qid": str, "turn": int, "docids": [in input order], "permutation": [identifiers, best first],
         "choices": int, "logps": [float, ...] or null, "malformed": bool, "dealt": bool}

    `path` is a `.jsonl` or `.jsonl.gz` file. A window that two lines hold is refused.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = existing_file(path)

    def _read(self) -> Iterator[WindowChoices]:
        seen: set[tuple[str, int]] = set()

        def build(row: Row) -> WindowChoices:
            window = _window(row)
            if (window.qid, window.turn) in seen:
                raise UserError(f"turn {window.turn} of query {window.qid!r} stands further up, too")
            seen.add((window.qid, window.turn))
            return window

        return self._jsonl(self.path, build)


def write_choices(windows: Iterable[WindowChoices], path: str | Path) -> None:
    """Write the layout that `ChoicesSource` reads."""
    write_rows(map(asdict, windows), path)


def _window(row: Row) -> WindowChoices:
    logps = row.get("logps")
    return WindowChoices(
        qid=text(row, "qid"),
        turn=field(row, "turn", is_whole, "a whole number"),
        docids=tuple(field(row, "docids", _is_texts, "a list of different strings")),
        permutation=whole_numbers(row, "permutation"),
        choices=field(row, "choices", is_whole, "a whole number"),
        logps=None if logps is None else tuple(field(row, "logps", _is_logps, "a list of numbers, none above 0")),
        malformed=field(row, "malformed", _is_bool, "true or false"),
        # Older files of sliding windows lack it.
        dealt=field({"dealt": False, **row}, "dealt", _is_bool, "true or false"),
    )


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return is_list(value) and bool(value) and all(map(is_text, value)) and len(set(value)) == len(value)


def _is_logps(value: Any) -> TypeGuard[list[float]]:
    return is_list(value) and all(is_number(item) and item <= 1e-6 for item in value)  # 1e-6: rounding


def _is_bool(value: Any) -> TypeGuard[bool]:
    return isinstance(value, bool)
