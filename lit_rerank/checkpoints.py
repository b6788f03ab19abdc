"""How checkpoints get to the disk and back: whole, or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_rerank.errors import UserError
from lit_rerank.whole import damage, written_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but that a file is on the disk before it replaces another, and is checked before it is read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with written_whole(Path(path)) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; only data, unless `weights_only` is false.

        Raises:
            UserError: if it is damaged.
            FileNotFoundError: if there is none.
        """
        refuse_damaged(path)
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only is not False)
        return checkpoint


def refuse_damaged(path: str | Path) -> None:
    """Raise a UserError if there is a checkpoint and it is damaged."""
    if Path(path).is_file() and (wrong := damage(Path(path))):
        raise UserError(
            f"ckpt_path: the checkpoint {path} cannot be used: {wrong}. Name an earlier one; --ckpt_path last finds "
            "the latest that is whole"
        )


RESUME = "Resume it as it was; or begin a new run from its adapter (model.init_args.backbone.adapter)"


def refuse_changed(saved: Mapping[str, Any], now: Mapping[str, Any], why: str, instead: str = RESUME) -> None:
    """Raise a UserError where a checkpoint is used with other settings than its own, of those that both know."""
    changed = [name for name, value in saved.items() if name in now and now[name] != value]
    if changed:
        was, here = (", ".join(f"{name} {settings[name]}" for name in changed) for settings in (saved, now))
        raise UserError(f"the checkpoint is of a run with {was}, and this one has {here}: {why}. {instead}")
