"""What a training run says of itself: how large its steps are, how long it will take, what to change without memory."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from data_modules.base import RankingDataModule
from lit_rerank.backbone import trainable_parameters
from lit_rerank.errors import out_of_memory
from lit_rerank.means import gather
from lit_rerank.modules import RerankModule
from lit_rerank.processor import slow_bfloat16
from lit_rerank.run_record import add_to_record

STEPS = 3  # are measured, after the first


class RunOverview(L.Callback):
    """Says at the start what an optimizer step is made of, and after a few steps its tokens and the time left.

    The same figures become `step` in `<run>/run.json`. An error for want of memory gets a note of what to change.
    """

    def __init__(self) -> None:
        self._placed = False  # whether the weights are on their device

    def on_fit_start(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        self._placed = True
        warn_of_slowness(trainer, module)

    def on_predict_start(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        self._placed = True
        warn_of_slowness(trainer, module)

    def on_train_start(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        self._first, self._steps = trainer.global_step, int(trainer.estimated_stepping_batches)
        self._since: float | None = None
        self._said = False
        data: RankingDataModule[Any] = trainer.datamodule  # type: ignore[attr-defined]
        self.figures: dict[str, Any] = step_size(trainer, data) | sizes(module) | {"steps": self._steps}
        rank_zero_info(describe(self.figures))
        self._record(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: RerankModule[Any], *args: Any) -> None:  # type: ignore[override]
        done = trainer.global_step - self._first
        if self._since is None and done == 1:  # the first is none to judge by: compiling, caches
            self._since, self._tokens = time.perf_counter(), module.tokens_read
        if done == 1 + STEPS and not self._said:
            self._measured(trainer, module, STEPS)

    def on_test_start(self, *args: Any) -> None:
        self._placed = True

    def on_validation_start(self, *args: Any) -> None:
        self._placed = True
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self._since is not None:
            self._since += time.perf_counter() - self._paused

    def on_train_end(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        done = trainer.global_step - self._first
        if done > 1 and not self._said:
            self._measured(trainer, module, done - 1)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if out_of_memory(exception) and isinstance(module, RerankModule):
            exception.add_note(memory_advice(trainer, module, self._placed))

    def _measured(self, trainer: L.Trainer, module: RerankModule[Any], steps: int) -> None:
        self._said = True
        seconds = (time.perf_counter() - (self._since or 0.0)) / steps
        tokens = sum(gather(module.tokens_read - self._tokens)) / steps
        left = (self._steps - trainer.global_step) * seconds
        self.figures |= {
            "tokens_a_step": round(tokens),
            "seconds_a_step": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds, 1),
            "seconds_left_at_first": round(left, 1),
        }
        until = datetime.now() + timedelta(seconds=left)
        rank_zero_info(
            f"{tokens:,.0f} tokens a step, {tokens / seconds:,.0f} a second on all processes; {seconds:.2f} s a step, "
            f"{timedelta(seconds=round(left))} left without validation: until {until:%Y-%m-%d %H:%M}"
        )
        self._record(trainer)

    def _record(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            add_to_record(Path(trainer.default_root_dir), "step", self.figures)


def warn_of_slowness(trainer: L.Trainer, module: RerankModule[Any]) -> None:
    """Say what to set where the processor is slow at the arithmetic that is asked for."""
    for asked in (f"precision {trainer.precision}", f"weights in {module.model.dtype}"):
        slow = slow_bfloat16(trainer.strategy.root_device, asked)
        if slow is not None:
            instead = "--trainer.precision=32-true --model.init_args.backbone.dtype=float32"
            rank_zero_warn(f"{slow}: set {instead}")
            return


def step_size(trainer: L.Trainer, data: RankingDataModule[Any]) -> dict[str, int]:
    """What an optimizer step is made of."""
    batch, accumulate, processes = data.batch_size, trainer.accumulate_grad_batches, trainer.world_size
    return {
        "batch_size": batch,
        "accumulate_grad_batches": accumulate,
        "processes": processes,
        "examples_a_step": batch * accumulate * processes,
    }


def sizes(module: RerankModule[Any]) -> dict[str, int]:
    """How many parameters the policy has (4-bit ones are two in a byte), and how many of them are trained."""
    return {
        "parameters": sum(p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in module.model.parameters()),
        "trained_parameters": sum(p.numel() for p in trainable_parameters(module.model).values()),
    }


def describe(figures: Mapping[str, Any]) -> str:
    """A step, in one line."""
    parts = [f"{name} {figures[name]}" for name in ("batch_size", "accumulate_grad_batches", "processes")]
    return (
        f"{figures['trained_parameters']:,} of {figures['parameters']:,} parameters are trained, in "
        f"{figures['steps']:,} steps of {figures['examples_a_step']:,} examples ({' x '.join(parts)})"
    )


def memory_advice(trainer: L.Trainer, module: RerankModule[Any], placed: bool) -> str:
    """The settings to change where memory has run out, with what they are now.

    Args:
        placed: whether the weights had their place on the device by then.
    """
    data: RankingDataModule[Any] = trainer.datamodule  # type: ignore[attr-defined]
    if not placed:
        return (
            "The weights alone are too many: --model.init_args.backbone.dtype=bfloat16, or a quarter of that with "
            "--model.init_args.backbone.load_in_4bit=true"
        )
    if not trainer.training:
        tokens, lists = module.reranking.max_batch_tokens, data.val_batch_size
        return (
            f"Read less at a time: --model.init_args.reranking.max_batch_tokens={tokens // 2} (it is {tokens}) "
            f"--data.init_args.val_batch_size={max(1, lists // 2)} (it is {lists})"
        )
    batch, accumulate, backbone = data.batch_size, trainer.accumulate_grad_batches, module.backbone
    if batch > 1:
        ways = [
            f"the same step in parts: --data.init_args.batch_size={-(-batch // 2)} (it is {batch}) "
            f"--trainer.accumulate_grad_batches={2 * accumulate} (it is {accumulate})"
        ]
    else:
        passage, most = module.prompt.max_passage_tokens, data.augmentation.max_size
        ways = [
            f"shorter passages: --model.init_args.prompt.max_passage_tokens (it is {passage or 'not set'}); smaller "
            f"windows: --data.init_args.augmentation.max_size (it is {most})"
        ]
    if data.replay is not None:
        length = module.prompt.max_length
        ways.append(f"shorter conversations: --model.init_args.prompt.max_length (it is {length or 'not set'})")
    if not backbone.gradient_checkpointing:
        ways.append("more time: --model.init_args.backbone.gradient_checkpointing=true")
    if backbone.tune == "full":
        ways.append("an adapter: --model.init_args.backbone.tune=lora; or more GPUs: configs/trainer/fsdp.yaml")
    elif not backbone.load_in_4bit:
        ways.append("4-bit weights: --model.init_args.backbone.load_in_4bit=true")
    return "It takes less with " + ". Or ".join(ways)
