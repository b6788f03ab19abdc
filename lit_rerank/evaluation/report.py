"""What all commands of `evaluate.py` share: progress, and figures that are printed and written."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from data_modules.files import put_in_place, user_path
from lit_rerank.errors import UserError


def keep_apart(written: Mapping[str, str | None], read: Iterable[str | None]) -> None:
    """Notice before the work that one of a command's files cannot be written, or would overwrite another.

    Args:
        written: the files to write, by option.
        read: the files that the command reads.
    """
    inputs = {user_path(path).resolve() for path in read if path is not None}
    taken: dict[Path, str] = {}
    for option, path in written.items():
        if path is None:
            continue
        place = Path(path).resolve()
        if place in inputs:
            raise UserError(f"{option} would overwrite {path}, which is read: name another file")
        if (other := taken.setdefault(place, option)) != option:
            raise UserError(f"{other} and {option} are one file, {path}: name two")
        make_way(path)


def make_way(path: str) -> None:
    """Notice before the work that a file cannot be written."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    file.parent.mkdir(parents=True, exist_ok=True)
    special = file.exists() and not file.is_file()  # such as /dev/stdout, whose folder stays as it is
    for place in (file,) if special else (file, file.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise UserError(f"{path} cannot be written, for {place} may not be changed: name a file elsewhere")


def write_figures(result: dict[str, Any], path: str) -> None:
    """Write the figures as JSON; a file is put in place only once it is whole."""
    with put_in_place(Path(path)) as place:
        place.write_text(json.dumps(result, indent=2) + "\n")


def report(result: dict[str, Any], path: str) -> None:
    """Write the figures as JSON, and print the same."""
    write_figures(result, path)
    for name, value in result.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")


@contextmanager
def progress_bar(what: str, total: int, every: float = 30.0) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, in a log a line at most every so many seconds and one at the end; and what moves it on."""
    with _bar(what, total) if sys.stdout.isatty() else _lines(what, total, every) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


@contextmanager
def _lines(what: str, total: int, every: float) -> Iterator[Callable[[int], None]]:
    started = said = time.monotonic()
    done = 0

    def say(now: float) -> None:
        left = (total - done) * (now - started) / done if done else None
        print(f"{what} {done}/{total}, {clock(now - started)} elapsed, {clock(left)} left", flush=True)

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= every:
            said = now
            say(now)

    try:
        yield advance
    finally:
        say(time.monotonic())


def clock(seconds: float | None) -> str:
    """As h:mm:ss; ? where nobody knows."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
