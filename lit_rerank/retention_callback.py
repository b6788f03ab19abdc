"""Watches during training what the model forgets, and acts on it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_rerank.backbone import trainable_parameters
from lit_rerank.callbacks import export
from lit_rerank.errors import UserError
from lit_rerank.general_text import open_documents
from lit_rerank.modules import RerankModule
from lit_rerank.paired import Differences, beyond, paired
from lit_rerank.questions import SHIPPED, open_questions
from lit_rerank.retention import Retention, measure
from lit_rerank.sharding import is_sharded


@dataclass
class MaxDrop:
    """How much of each measure may be lost; null: any amount.

    Attributes:
        acc, acc_cloze: share of the questions (0.05: five in a hundred).
        answer_logprob: nats per character of the right answer.
        bits_per_byte: of the text.
    """

    acc: float | None = None
    acc_cloze: float | None = 0.05
    answer_logprob: float | None = 0.1
    bits_per_byte: float | None = 0.1

    def __post_init__(self) -> None:
        for name, value in self.named.items():
            if value < 0:
                raise UserError(f"max_drop.{name} is {value}; it must be 0 or more")

    @property
    def named(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class RetentionCallback(L.Callback):
    """Measures retention (see `lit_rerank.retention`) before the first step and after validations.

    Logs `retention/<measure>`, and its change since the start as `retention/<measure>.change` with the ends of its 95 %
    interval, `.low` and `.high`. A measure has dropped when the whole interval lies beyond `max_drop`; those that
    start no better than chance are logged and not judged. With several processes the first one measures.

    Args:
        questions: a file of them, `hub` (MMLU's test questions) or `shipped` (the 281 dev questions of lm-eval).
        limit: only so many, spread evenly over all.
        fewshot: answered examples before each: a file of them, or how many dev questions.
        text: documents to read: a file or `shipped`; null: none.
        text_limit: only so many, spread evenly over all.
        every: measure after every so many validations.
        max_drop: what may be lost.
        on_drop: `warn`; `stop` training; or stop and `restore` the weights that did best (by the checkpoints' monitor,
            or else the latest) among those that were measured without a drop: they become `<run>/adapter` or
            `<run>/model`. In a run that is told so only when it is resumed: among those from there on.
        batch_size: prompts read at a time.
    """

    def __init__(
        self,
        questions: str = SHIPPED,
        limit: int | None = None,
        fewshot: int | str | None = None,
        text: str | None = SHIPPED,
        text_limit: int | None = None,
        every: int = 1,
        max_drop: MaxDrop | None = None,
        on_drop: Literal["warn", "stop", "restore"] = "warn",
        batch_size: int = 4,
    ) -> None:
        if every < 1:
            raise UserError(f"every is {every}; it must be at least 1")
        self.questions, self.examples = open_questions(questions, fewshot, limit)
        self.documents = open_documents(text, text_limit)
        self.every, self.max_drop, self.on_drop = every, max_drop or MaxDrop(), on_drop
        self.batch_size = batch_size
        self.start: Retention | None = None  # of the first process only
        self.differences: Differences = {}
        self.kept_score: float | None = None
        self._validations, self._to_restore = 0, False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure the start, unless a checkpoint has told of it.

        Raises:
            UserError: if the model is sharded, for the first process measures alone.
        """
        if isinstance(module, RerankModule) and is_sharded(module.model):
            raise UserError("the retention callback cannot watch a model in pieces (FSDP): leave it out")
        if trainer.is_global_zero:
            first = self.start is None
            if self.start is None:
                self.start = self._measure(trainer, module)
                self._log(trainer, {name: value for name, value in self.start.figures().items() if name in _LOGGED})
            if first:
                self._path(trainer).unlink(missing_ok=True)  # an earlier run's
            if not self._path(trainer).exists():
                self.kept_score = None
                self._keep(trainer, module)
        trainer.strategy.barrier("retention")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure, and act on a drop."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every:
            return
        dropped: list[str] = self._compare(trainer, module) if trainer.is_global_zero else []
        dropped = trainer.strategy.broadcast(dropped)
        if not dropped:
            self._keep_if_best(trainer, module)
            return
        rank_zero_warn(f"step {trainer.global_step}: {self._said(dropped)}")
        if self.on_drop != "warn":
            trainer.should_stop = True
            self._to_restore = self.on_drop == "restore"

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put back the best weights without a drop."""
        if not self._to_restore:
            return
        trainer.strategy.barrier("retention")
        kept = torch.load(self._path(trainer), map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in trainable_parameters(module).items():
                parameter.copy_(kept[name])
        if trainer.is_global_zero:
            assert isinstance(module, RerankModule)
            export(module, Path(trainer.default_root_dir))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on to compare with."""
        return {
            "start": None if self.start is None else self.start.rows(),
            "validations": self._validations,
            "kept_score": self.kept_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["start"] is not None:
            self.start = Retention.of_rows(state_dict["start"])
        self._validations, self.kept_score = state_dict["validations"], state_dict["kept_score"]

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> Retention:
        assert isinstance(module, RerankModule)
        tokenizer = module.encoder.chat.tokenizer
        with trainer.precision_plugin.forward_context():
            return measure(module.model, tokenizer, self.questions, self.documents, self.examples, self.batch_size)

    def _compare(self, trainer: L.Trainer, module: L.LightningModule) -> list[str]:
        """Which measures have dropped; all are logged."""
        assert self.start is not None
        self.differences = paired(self.start, self._measure(trainer, module))
        figures: dict[str, float] = {}
        for name, found in self.differences.items():
            change = {"": "after", ".change": "difference", ".low": "low", ".high": "high"}
            figures |= {f"{name}{ending}": found[key] for ending, key in change.items()}
        dropped = beyond(self.differences, self.max_drop.named)
        self._log(trainer, figures | {"dropped": float(len(dropped))})
        return dropped

    def _said(self, dropped: list[str]) -> str:
        if not self.differences:  # not the process that has measured
            return ", ".join(dropped)
        changes = "; ".join(
            f"{name} {found['before']:.4f} -> {found['after']:.4f} (95 % interval of the change {found['low']:+.4f} "
            f"to {found['high']:+.4f}, allowed {self.max_drop.named[name]})"
            for name, found in self.differences.items()
            if name in dropped
        )
        acts = {"warn": "", "stop": ": training stops", "restore": ": training stops, earlier weights are restored"}
        return f"general ability has dropped, {changes}{acts[self.on_drop]}"

    def _keep_if_best(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        monitor, mode = getattr(checkpoint, "monitor", None), getattr(checkpoint, "mode", "max")
        score = trainer.callback_metrics.get(monitor) if monitor else None
        signed = None if score is None else float(score) * (1 if mode == "max" else -1)
        if signed is not None and self.kept_score is not None and signed <= self.kept_score:
            return
        self.kept_score = signed
        if trainer.is_global_zero:
            self._keep(trainer, module)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.on_drop == "restore":
            path = self._path(trainer)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({n: p.detach().cpu() for n, p in trainable_parameters(module).items()}, path)

    @staticmethod
    def _path(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / "retained.pt"

    @staticmethod
    def _log(trainer: L.Trainer, figures: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            named = {f"retention/{name}": float(value) for name, value in figures.items()}
            logger.log_metrics(named, max(trainer.global_step - 1, 0))


_LOGGED = ("acc", "acc_cloze", "answer_logprob", "bits_per_byte", "acc_p_chance", "acc_cloze_p_chance")
