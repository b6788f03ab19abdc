"""What a scheduler's SIGTERM does to a training: it ends after the batch under way, and keeps it."""

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_rerank.loop import ends_epoch

EXIT_CODE = 128 + signal.SIGTERM  # as the shell has it


class StopOnSigterm(L.Callback):
    """Ends a training that gets SIGTERM, on all its processes after the same batch.

    Lightning's own handler lets each process end by itself, and talks to the others from within the handler, where
    they may be saying something else. Here the handler only takes a note; whether any process has one, they ask each
    other after every batch of training and validation. Other stages end at once.
    """

    def __init__(self) -> None:
        self._asked = False

    def on_sanity_check_start(self, *_: Any) -> None:
        _handle(self._note)

    on_train_start = on_sanity_check_start  # type: ignore[assignment]

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit":
            _handle(signal.SIG_DFL)

    on_test_start = on_predict_start = on_validation_start  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not ends_epoch(trainer):
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if ends_epoch(trainer):
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def _note(self, *_: Any) -> None:
        self._asked = True

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        ending = 0 <= trainer.max_steps == trainer.global_step  # nothing could resume that
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False) and not ending:
            raise SIGTERMException


def _handle(handler: Any) -> None:
    """In the place of Lightning's, which has been there since the training was set up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def outlive_sigterm(worker: int = 0) -> None:
    """Let a loader's process ignore the first SIGTERM: schedulers send it to every process, and the batch is wanted."""

    def wait(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, wait)
