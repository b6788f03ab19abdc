"""How far a run is: bars with the time left in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from lit_rerank.evaluation.progress_bar import clock


def progress(every: float = 30.0) -> ProgressBar:
    """The bar that fits where stdout goes."""
    return RunProgressBar() if sys.stdout.isatty() else ProgressLines(every)


class RunProgressBar(RichProgressBar):
    """Lightning's bar of each epoch, and above it one of the whole run: optimizer steps, time elapsed and left."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4, theme=RichProgressBarTheme(metrics_format=".4f"))
        self._run_id: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        # A resumed run's speed is that of its own steps: the bar begins at 0 of what is left.
        self._first = trainer.global_step
        if self.progress is not None:
            self._run_id = self._add_task(steps - self._first, "Run (steps)")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        self._update(self._run_id, trainer.global_step - self._first)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class ProgressLines(ProgressBar):
    """For logs: one plain line at most every `every` seconds, and one after each validation.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float = 30.0) -> None:
        super().__init__()
        self.every = every
        self._is_enabled = True
        self._said = -float("inf")

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first = time.monotonic(), trainer.global_step
        self._steps = trainer.estimated_stepping_batches

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        last = trainer.global_step == self._steps
        if time.monotonic() - self._said >= self.every or last:
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, pl_module, "validated, ")

    def _say(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str = "") -> None:
        if not self._is_enabled:
            return
        self._said = time.monotonic()
        step, seconds = trainer.global_step, self._said - self._started
        done = step - self._first
        left = (self._steps - step) * seconds / done if done else None
        figures = _figures(self.get_metrics(trainer, pl_module))
        print(
            f"{what}epoch {trainer.current_epoch + 1}, step {step}/{self._steps:.0f}, "
            f"{clock(seconds)} elapsed, {clock(left)} left, {figures}",
            flush=True,
        )


def _figures(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.4f}" for name, value in metrics.items() if name != "v_num")
