"""How prompts were made, kept beside the weights that were trained on them."""

import json
import reprlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_rerank.chain import FORMATS
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError

SETTINGS_FILE = "lit_rerank.json"
_FITS: dict[type, Callable[[Any], bool]] = {  # by the type of a setting's default
    str: lambda value: value in FORMATS if isinstance(value, str) else False,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool)),
}


def save_prompt_settings(settings: PromptSettings, directory: str | Path) -> None:
    """Write them into the directory of the weights."""
    (Path(directory) / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def load_prompt_settings(directory: str | Path, otherwise: PromptSettings | None = None) -> PromptSettings:
    """The settings beside a model or adapter; where there are none, `otherwise`, or the defaults."""
    path = settings_file(str(directory))
    if path is None:
        return otherwise or PromptSettings()
    try:
        settings = PromptSettings(**json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not prompt settings: {' '.join(str(error).split())}") from error
    for name, value in asdict(settings).items():
        if not _FITS[type(getattr(PromptSettings, name))](value):
            raise UserError(f"{path}: not prompt settings: {name} is {reprlib.repr(value)}")
    return settings


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
