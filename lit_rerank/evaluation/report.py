"""What all commands of `evaluate.py` share: progress, and figures that are printed and written."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_rerank.errors import UserError


def make_way(path: str) -> None:
    """Notice before the work that a file cannot be written."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a directory; name a file")
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def write_figures(result: dict[str, Any], path: str) -> None:
    """Write the figures as JSON."""
    Path(path).write_text(json.dumps(result, indent=2) + "\n")


def report(result: dict[str, Any], path: str) -> None:
    """Write the figures as JSON, and print the same."""
    write_figures(result, path)
    for name, value in result.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and what moves it on."""
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
