"""What all sources share: lines read safely, and what happens to a broken one."""

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lit_rerank.errors import UserError

OnError = Literal["raise", "skip"]
Record = TypeVar("Record")


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

    @abstractmethod
    def __iter__(self) -> Iterator[Record]: ...
