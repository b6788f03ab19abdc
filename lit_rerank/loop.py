"""What comes after a training batch, in Lightning's fit loop."""

from typing import Any

import lightning as L


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether a validation comes next."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether nothing comes between the batch under way and the epoch's end.

    What is saved there waits for that end: Lightning would resume with the next epoch, and with a loader that is spent.
    """
    return trainer.is_last_batch and not validation_follows(trainer)
