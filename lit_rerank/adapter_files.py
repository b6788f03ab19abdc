"""An adapter's files, as PEFT names them, with this project's settings beside them.

What needs torch is imported by the functions that use it: commands' `--help` reads modules that name these.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_weights(folder: Path) -> "dict[str, Tensor]":
    """An adapter's weights by name.

    Raises:
        UserError: if there are none that can be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} holds no adapter: {WEIGHTS} cannot be read") from error


def write_like(like: Path, weights: "dict[str, Tensor]", folder: Path) -> None:
    """Write an adapter that is another one but for its weights into a folder that exists."""
    from safetensors.torch import save_file

    from lit_rerank.as_trained import SETTINGS_FILE

    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for name in (CONFIG, SETTINGS_FILE):
        if (like / name).exists():
            shutil.copyfile(like / name, folder / name)
