"""What a model was trained to be asked, kept beside its weights: how prompts are written, and how lists are read."""

import json
import reprlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_rerank.chain import FORMATS
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.reading import NAMED, Reading, SlidingWindow, named, open_reading

SETTINGS_FILE = "lit_rerank.json"
READING = "reading"  # what stands beside the settings of prompts
_FITS: dict[type, Callable[[Any], bool]] = {  # by the type of a setting's default
    str: lambda value: value in FORMATS if isinstance(value, str) else False,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None or _is_count(value),
}


def save_settings(prompt: PromptSettings, reading: Reading, directory: str | Path) -> None:
    """Write them into the directory of the weights."""
    known = asdict(prompt) | {READING: named(reading)}
    (Path(directory) / SETTINGS_FILE).write_text(json.dumps(known, indent=2) + "\n")


def load_prompt_settings(directory: str | Path, otherwise: PromptSettings | None = None) -> PromptSettings:
    """The settings of prompts beside a model or adapter; where there are none, `otherwise`, or the defaults."""
    path = settings_file(str(directory))
    if path is None:
        return otherwise or PromptSettings()
    try:
        settings = PromptSettings(**{name: value for name, value in _found(path).items() if name != READING})
    except TypeError as error:
        raise UserError(f"{path}: not prompt settings: {' '.join(str(error).split())}") from error
    for name, value in asdict(settings).items():
        if not _FITS[type(getattr(PromptSettings, name))](value):
            raise UserError(f"{path}: not prompt settings: {name} is {reprlib.repr(value)}")
    return settings


def load_reading(directory: str | Path) -> Reading:
    """How the model or adapter keeps that lists are to be read; where that is not known, the default."""
    path = settings_file(str(directory))
    known = {} if path is None else _found(path).get(READING, {})
    if not isinstance(known, dict) or not set(known) <= {*NAMED} or not all(map(_is_count, known.values())):
        raise UserError(f"{path}: {READING} is {reprlib.repr(known)}: it has {', '.join(NAMED)}, whole numbers")
    try:
        return open_reading(**known) if known else SlidingWindow()
    except UserError as error:
        raise UserError(f"{path}: {READING}: {error}") from error


def reading_as_asked(
    start: str, window: int | None, stride: int | None, depth: int, top_k: int | None, rounds: int | None
) -> Reading:
    """How lists are to be read: as is asked for, the rest as the model or adapter `start` is made to."""
    known = load_reading(start) if window is None else None
    return open_reading(window, stride, depth, top_k, rounds, known)


def settings_file(name: str) -> Path | None:
    """The settings of a directory or Hugging Face id, if it has any."""
    path = Path(name) / SETTINGS_FILE
    if path.is_file() or Path(name).is_dir():
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, SETTINGS_FILE))
    except (OSError, ValueError):  # no such file, id or network; whatever else is wrong shows when weights are loaded
        return None


def _found(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not prompt settings: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not prompt settings: {reprlib.repr(found)}")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
