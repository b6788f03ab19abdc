"""Progress of long work: a bar in a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta


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
