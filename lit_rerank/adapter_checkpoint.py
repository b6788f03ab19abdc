"""Checkpoints that resume exactly, each with its adapter beside it."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from data_modules.base import RankingDataModule
from lit_rerank.errors import UserError
from lit_rerank.export import export
from lit_rerank.loop import (
    begin_next_epoch,
    ends_epoch,
    forget_spent_loader,
    stops,
    unstopped,
    validation_follows,
)
from lit_rerank.modules import RerankModule
from lit_rerank.sharding import is_partitioned, whole_weights
from lit_rerank.whole import damage, remove


class AdapterCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best `val/nDCG@10` and the last one, each with its adapter in PEFT's layout.

    `<run>/checkpoints/<name>.ckpt` resumes training; `<run>/checkpoints/<name>/adapter/` and, for the best,
    `<run>/adapter/` are what inference loads. Full fine-tuning writes whole models, to `.../model/`. A run that
    finds older files of the same name replaces them.

    Each is written whole or not at all. The `last.ckpt` before the last stays, as `last-previous.ckpt`, without an
    adapter: `--ckpt_path last` goes on from it where `last.ckpt` is damaged. A run that is asked to end (SIGTERM)
    writes `last.ckpt` first.

    Args:
        monitor: the figure that decides which checkpoint is the best; null: the latest is.
        mode: whether it is better when higher (`max`) or lower (`min`).
        filename: without `.ckpt`; may hold `{step}`, `{epoch}` and figures.
        save_top_k: how many of the best are kept; -1: all.
        save_last: whether `last.ckpt` is written.
        every_n_train_steps: write `last.ckpt` so often, besides after validations, epochs and the last step.
        save_on_train_epoch_end: whether the best is sought when an epoch ends; by default after validation.
    """

    def __init__(
        self,
        monitor: str | None = "val/nDCG@10",
        mode: str = "max",
        filename: str = "step={step}",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_train_steps: int | None = None,
        save_on_train_epoch_end: bool | None = None,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise UserError(
                f"checkpoint.every_n_train_steps is {every_n_train_steps}; it must be at least 1, or null to save at "
                "validations alone"
            )
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=save_top_k,
            save_last=False,  # Lightning's only follows the best
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.keep_last, self.last_every = save_last, every_n_train_steps
        self._last_saved_at = 0  # or resumed at
        self._has_saved = False  # in this process
        self._stopped = False  # whether the batch under way is the last because training was asked to stop
        self._validation_first = False  # whether a run resumed from what is now saved begins with a validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, RankingDataModule):
            self.check_monitor(cast(RerankModule[Any], pl_module), data)
        super().setup(trainer, pl_module, stage)

    def check_monitor(self, module: RerankModule[Any], data: RankingDataModule[Any]) -> None:
        """Refuse a run whose validation would never tell which checkpoint is the best."""
        validated = data.records.keys() & {"val", "candidates"}
        measures = [f"val/{measure}" for measure in module.reranking.measures]
        if validated and not data.is_judged and self.monitor in measures:
            raise UserError(
                f"checkpoint.monitor is {self.monitor}, but no list of data.candidates has judgements (qrels): "
                "add them, or pass --checkpoint.monitor val/loss --checkpoint.mode min"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._validation_first:
            _begin_with_validation(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        forget_spent_loader(checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        begin_next_epoch(trainer)
        self._last_saved_at = trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # A resumed run has counted one batch in advance (see _begin_with_validation).
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """A run that is asked to end keeps what it has done."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.sanity_checking:
            rank_zero_info("SIGTERM: stopped before the first step")
            return
        self._save_amid_epoch(trainer)
        kept = f"which {self.last_model_path} keeps; to go on, add --ckpt_path last"
        lost = "which nothing keeps: checkpoint.save_last is false"
        rank_zero_info(f"SIGTERM: stopped after step {trainer.global_step}, {kept if self.keep_last else lost}")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Write `last.ckpt` where it is due, and where something (a Timer, `max_time`) stops training amid an epoch."""
        self._stopped = stops(trainer)
        with unstopped(trainer):
            if (self._is_due(trainer) or self._stopped) and not ends_epoch(trainer):
                self._save_amid_epoch(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        due = step == trainer.max_steps or (self.last_every is not None and step % self.last_every == 0)
        return due and step != self._last_saved_at  # all the batches of an accumulation ask

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best and the last, unless that waits for the epoch's end."""
        super().on_validation_end(trainer, pl_module)
        if (
            trainer.state.fn == TrainerFn.FITTING
            and not trainer.sanity_checking
            and not self._should_save_on_train_epoch_end(trainer)
            and not self._stopped  # what is saved goes on where training stopped
        ):
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best and the last, unless `max_steps` has ended the epoch early: nothing could resume that."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)
            if self._should_save_on_train_epoch_end(trainer) or self._is_due(trainer):
                self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last, where something else has stopped training."""
        if self._last_saved_at != trainer.global_step:
            self._save_last(trainer)

    def _save_amid_epoch(self, trainer: L.Trainer) -> None:
        self._validation_first = trainer.validating or validation_follows(trainer)
        if not self._validation_first or trainer.global_step != trainer.max_steps:  # nothing resumes after max_steps
            self._save_last(trainer)
        self._validation_first = False

    def _save_last(self, trainer: L.Trainer) -> None:
        if self.keep_last and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            best_saved_at = self._last_global_step_saved
            last = Path(self.dirpath or "") / f"{self.CHECKPOINT_NAME_LAST}.ckpt"
            if trainer.is_global_zero and self._last_saved_at != trainer.global_step:
                if not self._has_saved and trainer.ckpt_path is None:
                    remove(_previous(last))
                elif last.exists() and (self._has_saved or not _damage(last)):  # at first, it may be anything
                    _keep_previous(last)
            self.last_model_path = str(last)
            self._save_checkpoint(trainer, self.last_model_path)
            self._last_global_step_saved = best_saved_at  # the best may still follow on this step
            self._last_saved_at, self._has_saved = trainer.global_step, True

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        module = cast(RerankModule[Any], trainer.lightning_module)
        if is_partitioned(module.model):
            super()._save_checkpoint(trainer, filepath)
            rank_zero_warn(f"the weights are in pieces: make them whole by the zero_to_fp32.py in {filepath}")
            return
        weights = whole_weights(module.model)
        # The checkpoint comes last: a run that is killed in between does these steps again, and writes all anew.
        if trainer.is_global_zero:
            export(module, Path(filepath).with_suffix(""), weights)
            if self.monitor is None or self.best_model_path in ("", filepath):  # before any validation: the latest
                export(module, Path(trainer.default_root_dir), weights)
        super()._save_checkpoint(trainer, filepath)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """What Lightning takes the latest of for `--ckpt_path last`: here, the latest that is whole.

        Of a run that was copied, times say nothing: what was kept of the one before comes after the last in any case,
        and the best, which validation chose, after both.
        """
        last = super()._find_last_checkpoints(trainer)
        folder = os.path.normpath(self._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]

        def order(path: str) -> tuple[bool, bool, float]:
            return path not in last, Path(path).stem.endswith("-previous"), -Path(path).stat().st_mtime

        found = sorted({*last, *map(str, Path(folder).glob(f"*{self.FILE_EXTENSION}"))}, key=order)
        passed_over: list[str] = []
        for path in found:
            wrong = _damage(Path(path))
            if wrong is None:
                if passed_over:
                    rank_zero_warn(f"{'; '.join(passed_over)}: the one before it is used, {path}")
                return {path}
            passed_over.append(f"{path} is damaged ({wrong})")
        if passed_over:
            raise UserError(f"ckpt_path: no checkpoint is whole: {'; '.join(passed_over)}")
        return set()

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            shutil.rmtree(Path(filepath).with_suffix(""), ignore_errors=True)


def _damage(checkpoint: Path) -> str | None:
    return damage(checkpoint) if checkpoint.is_file() else None  # a folder is the strategy's own


def _previous(last: Path) -> Path:
    """The second name of `last.ckpt`, which its successor leaves alone."""
    return last.with_name(f"{last.stem}-previous.ckpt")


def _keep_previous(last: Path) -> None:
    """Give `last.ckpt`, a file or a folder, its second name."""
    spare = last.with_name(".previous")
    spare.unlink(missing_ok=True)
    try:
        spare.hardlink_to(last)
    except OSError:  # not every file system has links, and folders have none
        remove(_previous(last))
        last.replace(_previous(last))
    else:
        spare.replace(_previous(last))
        spare.unlink(missing_ok=True)  # still there where the two were one file


def _begin_with_validation(loop: dict[str, Any]) -> None:
    """Let the fit loop that is restored from this state validate before its next step.

    Lightning takes the validation that follows a saved step for done, unless one of its batches had started.
    """
    trained = loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        trained[part]["completed"] = trained[part]["processed"]
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    begun = {**none, "ready": 1, "started": 1}
    loop["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": none, "is_last_batch": False}
