"""What all commands of `evaluate.py` share: figures that are printed and written, and room for the files."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_modules.files import put_in_place, user_path
from lit_rerank.errors import UserError


def keep_apart(written: Mapping[str, str | None], read: Iterable[str | None]) -> None:
    """Notice before the work that one of a command's files cannot be written, or would overwrite another.

    Args:
        written: the files to write, by option.
        read: the files and folders that the command reads.
    """
    inputs = {user_path(path).resolve() for path in read if path is not None}
    taken: dict[Path, str] = {}
    for option, path in written.items():
        if path is None:
            continue
        place = Path(path).resolve()
        if place in inputs:
            raise UserError(f"{option} would overwrite {path}, which is read: name another file")
        if place.exists() and (folders := inputs.intersection(place.parents)):
            raise UserError(f"{option} would overwrite {path} in {folders.pop()}, which is read: name a file elsewhere")
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
