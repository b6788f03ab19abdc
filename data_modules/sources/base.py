"""What all sources share: lines read safely and written, fields checked, and what happens to a broken line."""

import json
import re
import reprlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeGuard, TypeVar

from data_modules.files import MAX_ARRAY, decoded, read_lines, written
from data_modules.files import existing_file as existing_file
from data_modules.records import Passage
from lit_rerank.errors import UserError

OnError = Literal["raise", "skip"]
Row = dict[str, Any]
Record = TypeVar("Record")
Raw = TypeVar("Raw")
Built = TypeVar("Built")

SURROGATE = re.compile("[\ud800-\udfff]")
ONE_A_LINE = "a file with one object a line is to be named .jsonl"


class Source(ABC, Generic[Record]):
    """An iterable of records read from files; each pass reads them anew.

    Attributes:
        on_error: `raise` stops at the first broken line; `skip` leaves it out and counts it.
        skipped: one message (with file and line) for each line that the last pass left out.
    """

    def __init__(self, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
        self.on_error = on_error
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        self.skipped = []
        return self._read()

    @abstractmethod
    def _read(self) -> Iterator[Record]: ...

    def _jsonl(self, path: Path, build: Callable[[Row], Built]) -> Iterator[Built]:
        """What `build` makes of each line of a `.jsonl` or `.jsonl.gz` file."""
        return self._build(read_lines(path), lambda line: build(parse_object(line)))

    def _json(self, path: Path, build: Callable[[Row], Built]) -> Iterator[Built]:
        """What `build` makes of each object of a file that `read_rows` reads."""
        return self._build(read_rows(path), lambda raw: build(to_object(raw)))

    def _build(self, raws: Iterable[tuple[str, Raw]], build: Callable[[Raw], Built]) -> Iterator[Built]:
        """What `build` makes of each (place, raw record); its UserErrors gain the place, and raise or are skipped."""
        for place, raw in raws:
            try:
                built = build(raw)
            except UserError as error:
                message = f"{place}: {error}"
                if self.on_error == "raise":
                    raise UserError(message) from None
                self.skipped.append(message)
            else:
                yield built


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """`file:line` and line of each line of a `.jsonl` or `.jsonl.gz` file; of any other file, which must hold a JSON
    array, `file: record number` and item. Both for `to_object`."""
    if ".jsonl" in path.suffixes:
        return read_lines(path)
    return ((f"{path}: record {number}", item) for number, item in enumerate(read_array(path), start=1))


def read_array(path: Path) -> list[Any]:
    """The JSON array that a file holds, packed or not.

    Raises:
        UserError: where it holds none.
    """
    lines, size = [], 0
    for numbered in read_lines(path, MAX_ARRAY):
        lines.append(numbered)
        size += len(numbered[1])
        if size > MAX_ARRAY:
            raise UserError(
                f"{path}: more than {MAX_ARRAY >> 30} GiB as one JSON array: name it .jsonl, one object a line"
            )
    try:
        items = json.loads(b"".join(line for _, line in lines))
    except json.JSONDecodeError as error:
        place = lines[min(error.lineno, len(lines)) - 1][0] if lines else path
        hint = f"; {ONE_A_LINE}" if error.msg == "Extra data" and len(lines) > 1 else ""
        raise UserError(f"{place}: not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not usable JSON: {error}") from None
    if not isinstance(items, list):
        raise UserError(f"{path}: must hold a JSON array; {ONE_A_LINE}")
    return items


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write a row a line, packed where the name ends in `.gz`; the same rows are the same bytes.

    The file is put in place only once it is whole.
    """
    with written(Path(path)) as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def to_object(raw: Any) -> Row:
    """The JSON object that a line or an item of an array is."""
    return parse_object(raw) if isinstance(raw, bytes) else as_object(raw)


def parse_object(line: bytes) -> Row:
    """The JSON object that one line holds."""
    content = decoded(line)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested without end
        raise UserError(f"not usable JSON: {error}") from None
    return as_object(value)


def as_object(value: Any) -> Row:
    """`value`, or a UserError where it is not a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"must be a JSON object, not {reprlib.repr(value)}")
    return value


def is_text(value: Any) -> TypeGuard[str]:
    """Whether `value` is a string that UTF-8 can hold (JSON can escape half a surrogate pair)."""
    return isinstance(value, str) and not SURROGATE.search(value)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether `value` is a whole number of at most 64 bits; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number, NaN and the infinities left out."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_id(value: Any) -> TypeGuard[str | int]:
    """Whether `value` can name a query or a document."""
    return is_text(value) or is_whole(value)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether `value` is a list."""
    return isinstance(value, list)


def is_whole_list(value: Any) -> TypeGuard[list[int]]:
    """Whether `value` is a list of whole numbers."""
    return isinstance(value, list) and all(map(is_whole, value))


def is_grades(value: Any) -> TypeGuard[dict[str, int]]:
    """Whether `value` is an object with whole numbers only."""
    return isinstance(value, dict) and all(map(is_whole, value.values()))


def field(row: Row, name: str, is_valid: Callable[[Any], TypeGuard[Built]], what: str) -> Built:
    """`row[name]`, or a UserError saying that it is missing or must be `what`."""
    if name not in row:
        raise UserError(f'"{name}" is missing')
    value = row[name]
    if not is_valid(value):
        raise UserError(f'"{name}" must be {what}, not {reprlib.repr(value)}')
    return value


def text(row: Row, name: str) -> str:
    """The string `row[name]`."""
    return field(row, name, is_text, "a string")


def first_of(row: Row, *names: str) -> str:
    """The first of `names` that is a field of `row`: layouts call one thing by several names."""
    for name in names:
        if name in row:
            return name
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise UserError(f'"{names[0]}"{others} is missing')


def identifier(row: Row, *names: str) -> str:
    """The string or whole number in the first of the fields `names` that is there, as a string."""
    return str(field(row, first_of(row, *names), is_id, "a string or a whole number"))


def whole_numbers(row: Row, name: str) -> tuple[int, ...]:
    """The whole numbers in the list `row[name]`."""
    return tuple(field(row, name, is_whole_list, "a list of whole numbers"))


def each(row: Row, name: str, build: Callable[[Row], Built], limit: int | None = None) -> tuple[Built, ...]:
    """What `build` makes of the objects in the list `row[name]`; its UserErrors gain the item's number."""
    built = []
    for number, item in enumerate(field(row, name, is_list, "a list of objects")[:limit], start=1):
        try:
            built.append(build(as_object(item)))
        except UserError as error:
            raise UserError(f'"{name}", item {number}: {error}') from None
    return tuple(built)


def passage(row: Row) -> Passage:
    """`{"docid": str, "text": str, "score"?: float}`"""
    return Passage(text(row, "docid"), text(row, "text"), score(row))


def score(row: Row) -> float | None:
    """The finite number `row["score"]`, or None where there is none."""
    return None if row.get("score") is None else float(field(row, "score", is_number, "a finite number"))
