"""Where Lightning's fit loop stands, and how it goes on from there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether a validation comes next."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def accumulates(trainer: L.Trainer) -> bool:
    """Whether the optimizer's step is still to come.

    Where a strategy accumulates by itself (DeepSpeed), Lightning calls the hooks of that step after each batch.
    """
    return bool(trainer.fit_loop._should_accumulate())


def stops(trainer: L.Trainer) -> bool:
    """Whether training ends after the batch under way because it was asked to."""
    return trainer.should_stop and bool(trainer.fit_loop._can_stop_early)


@contextmanager
def unstopped(trainer: L.Trainer) -> Iterator[None]:
    """Inside, what follows is what would if nothing had asked training to stop: so a resumed run finds it."""
    asked, trainer.should_stop = trainer.should_stop, False
    try:
        yield
    finally:
        trainer.should_stop = asked


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether nothing comes between the batch under way and the epoch's end.

    What is saved there waits for that end: Lightning would resume with the next epoch, and with a loader that is spent.
    """
    return trainer.is_last_batch and not validation_follows(trainer)


def forget_spent_loader(loop: dict[str, Any]) -> None:
    """Of the fit loop's state at an epoch's end: the next one begins with a new loader."""
    epochs = loop["epoch_progress"]["total"]
    if epochs["ready"] == epochs["processed"] == epochs["completed"] + 1:
        loop["state_dict"].pop("combined_loader", None)


def begin_next_epoch(trainer: L.Trainer) -> None:
    """Where a run is resumed at an epoch's end, go on with the next.

    Lightning does so by itself where `max_epochs` alone ends the run. With `max_steps`, it would leave an epoch out.
    """
    loop: Any = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
        for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
            part.reset_restart_stage()
