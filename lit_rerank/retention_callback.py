"""Watches during training what the model forgets, and acts on it."""

from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from data_modules.base import RankingDataModule
from lit_rerank.backbone import trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.export import export
from lit_rerank.general_text import open_documents
from lit_rerank.loop import stops
from lit_rerank.measurement import Retention
from lit_rerank.modules import RerankModule
from lit_rerank.paired import ALPHA, MEASURES, Differences, above_chance, beyond, check_same, paired
from lit_rerank.questions import HUB, SHIPPED, open_questions
from lit_rerank.retention import measure
from lit_rerank.sharding import is_partitioned, is_sharded
from lit_rerank.whole import damage, written_whole

OnDrop = Literal["warn", "stop", "restore"]


@dataclass
class MaxDrop:
    """How much of each measure may be lost; null: any amount.

    Attributes:
        acc, acc_cloze: share of the questions (0.05: five in a hundred).
        answer_logprob: nats per character of the right answer.
        answer_margin: of what the right answer has over the wrong ones, nats per character.
        bits_per_byte: of the text.
    """

    acc: float | None = None
    acc_cloze: float | None = 0.05
    answer_logprob: float | None = 0.1
    answer_margin: float | None = None
    bits_per_byte: float | None = 0.1

    def __post_init__(self) -> None:
        for name, value in self.named.items():
            if not value >= 0:  # nan, too
                raise UserError(f"max_drop.{name} is {value}; it must be 0 or more")

    @property
    def named(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class RetentionCallback(L.Callback):
    """Measures retention (see `lit_rerank.retention`) before the first step and after validations.

    Logs `retention/<measure>`, and its change since the start as `retention/<measure>.change` with the ends of its 95 %
    interval, `.low` and `.high`. A measure has dropped when the whole interval lies beyond `max_drop`; those that
    start no better than chance (`lit_rerank.paired.above_chance`) are logged and not judged. With several processes the
    first one measures, and the others wait: no measurement may last longer than their `strategy.timeout`.

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
            `<run>/model`. In a run that is told so only when it is resumed, or resumed from before these weights:
            among those from there on, which are measured first; while none are without a drop, nothing is restored.
            Where `min_steps` or `min_epochs` keeps training from stopping, the last measurement decides whether weights
            are restored.
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
        on_drop: OnDrop = "warn",
        batch_size: int = 4,
    ) -> None:
        if every < 1:
            raise UserError(f"every is {every}; it must be at least 1")
        self.questions, self.examples = open_questions(questions, fewshot, limit)
        self.documents = open_documents(text, text_limit)
        self.every, self.max_drop, self.on_drop = every, max_drop or MaxDrop(), on_drop
        self.batch_size = batch_size
        self.from_hub = questions == HUB and limit is None
        self.start: Retention | None = None  # of the first process, and of all that are resumed
        self.differences: Differences = {}
        self.kept_step: int | None = None
        self.kept_score: float | None = None
        self._validations, self._restorable, self._to_restore = 0, False, False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure the start, unless a checkpoint has told of it.

        Raises:
            UserError: if nothing would be measured later, if the model is sharded (the first process measures alone),
                or if the checkpoint's run was watched by other questions; on all processes alike.
        """
        self._check(trainer, module)
        begins = trainer.strategy.broadcast(self._begin(trainer, module) if trainer.is_global_zero else None)
        self._restorable = begins != "dropped"
        if begins == "kept anew":
            self._keep(trainer, module, None)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure, and act on a drop."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every:
            return
        dropped: list[str] = self._compare(trainer, module) if trainer.is_global_zero else []
        dropped = trainer.strategy.broadcast(dropped)
        self._to_restore = bool(dropped) and self.on_drop == "restore" and self._restorable
        if not dropped:
            self._keep_if_best(trainer, module)
            return
        trainer.should_stop |= self.on_drop != "warn"
        act = "stop" if self.on_drop == "restore" and not self._restorable else self.on_drop
        rank_zero_warn(f"step {trainer.global_step}: {self._said(dropped, stops(trainer), act)}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put back the best weights without a drop."""
        if not self._to_restore:
            return
        trainer.strategy.barrier("retention")
        kept = torch.load(self._path(trainer), map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in trainable_parameters(module).items():
                parameter.copy_(kept["weights"][name])
        if trainer.is_global_zero:
            assert isinstance(module, RerankModule)
            export(module, Path(trainer.default_root_dir))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on to compare with."""
        return {
            "start": None if self.start is None else self.start.rows(),
            "validations": self._validations,
            "kept_step": self.kept_step,
            "kept_score": self.kept_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["start"] is not None:
            self.start = Retention.of_rows(state_dict["start"])
        self._validations, self.kept_score = state_dict["validations"], state_dict["kept_score"]
        self.kept_step = state_dict.get("kept_step")  # earlier versions did not tell

    def _check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What speaks against watching; each process finds the same."""
        assert isinstance(module, RerankModule)
        if is_sharded(module.model) or is_partitioned(module.model):
            raise UserError("the retention callback cannot watch a model in pieces (FSDP, ZeRO 3): leave it out")
        if not _validates(trainer):
            raise UserError(
                "the retention callback measures after validations, and there are none: name data.init_args.val or "
                "candidates, with trainer.limit_val_batches above 0, or leave the callback out"
            )
        if self.start is not None:
            try:
                check_same(self.start, self.questions, self.documents, tuple(e.id for e in self.examples))
            except UserError as error:
                raise UserError(
                    f"the checkpoint's run was watched otherwise: {error}. Resume it with the settings that its "
                    "RetentionCallback had, or begin a new run"
                ) from error
        if self.from_hub and trainer.world_size > 1:
            rank_zero_warn(
                "the first process asks all of MMLU's 14,042 questions while the others wait, no longer than the "
                "strategy's timeout (30 minutes by default): raise it (docs/strategies.md), or set the callback's limit"
            )

    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> Literal["kept anew", "found", "dropped"]:
        """What could be restored at first: the weights as they are now, those that an earlier run kept, or none."""
        begun = self.start is None
        if self.start is None:
            self.start = self._measure(trainer, module)
            self._log(trainer, {name: value for name, value in self.start.figures().items() if name in _LOGGED})
        self._warn_of_unjudged(self.start)
        if self.on_drop != "restore" or self._finds_kept(trainer):
            return "found"
        dropped = [] if begun else self._compare(trainer, module)
        if dropped:
            rank_zero_warn(f"resumed at step {trainer.global_step}: {self._said(dropped, stops_now=False, act='warn')}")
        return "dropped" if dropped else "kept anew"

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

    def _said(self, dropped: list[str], stops_now: bool, act: OnDrop) -> str:
        if not self.differences:  # not the process that has measured
            return ", ".join(dropped)
        changes = "; ".join(
            f"{name} {found['before']:.4f} -> {found['after']:.4f} (95 % interval of the change {found['low']:+.4f} "
            f"to {found['high']:+.4f}, allowed {self.max_drop.named[name]})"
            for name, found in self.differences.items()
            if name in dropped
        )
        acts = {"warn": "", "stop": ": training stops", "restore": ": training stops, earlier weights are restored"}
        if not stops_now:
            acts["stop"] = ": training stops when min_steps and min_epochs are reached"
            acts["restore"] = f"{acts['stop']}, earlier weights are restored if the last measurement finds a drop, too"
        return f"general ability has dropped, {changes}{acts[act]}"

    def _warn_of_unjudged(self, start: Retention) -> None:
        """A drop from chance is none: whoever counts on a measure shall know."""
        figures = start.figures()
        known = [name for name in self.max_drop.named if name in figures]
        if at_chance := [name for name in known if not above_chance(name, start) < ALPHA]:
            rank_zero_warn(
                f"{', '.join(at_chance)}: the model starts no better than chance, so no drop can be told, whatever "
                "max_drop says of it"
            )

    def _keep_if_best(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep these weights, unless those that are kept did better; a score that is no finite number is the worst."""
        checkpoint = trainer.checkpoint_callback
        monitor, mode = getattr(checkpoint, "monitor", None), getattr(checkpoint, "mode", "max")
        score = trainer.callback_metrics.get(monitor) if monitor else None
        signed = None if score is None else float(score) * (1 if mode == "max" else -1)
        if signed is not None and not isfinite(signed):
            signed = -inf
        if signed is None or self.kept_score is None or signed > self.kept_score:
            self._keep(trainer, module, signed)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule, score: float | None) -> None:
        if self.on_drop != "restore":
            return
        self._restorable = True
        self.kept_step, self.kept_score = trainer.global_step, score
        if trainer.is_global_zero:
            weights = {name: weight.detach().cpu() for name, weight in trainable_parameters(module).items()}
            with written_whole(self._path(trainer)) as unfinished, unfinished.open("wb") as file:
                torch.save({"step": self.kept_step, "score": score, "weights": weights}, file)

    def _finds_kept(self, trainer: L.Trainer) -> bool:
        """Whether the weights that the checkpoint tells of are there: not another run's, nor those of a later step."""
        path = self._path(trainer)
        if self.kept_step is None or not path.exists():
            return False
        if wrong := damage(path):
            rank_zero_warn(f"{path} is damaged ({wrong}): of what was measured before, nothing can be restored")
            return False
        kept = torch.load(path, map_location="cpu", weights_only=True)
        return (kept.get("step"), kept.get("score")) == (self.kept_step, self.kept_score)

    @staticmethod
    def _path(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / "retained.pt"

    @staticmethod
    def _log(trainer: L.Trainer, figures: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            named = {f"retention/{name}": float(value) for name, value in figures.items()}
            logger.log_metrics(named, max(trainer.global_step - 1, 0))


def _validates(trainer: L.Trainer) -> bool:
    data = getattr(trainer, "datamodule", None)
    without = isinstance(data, RankingDataModule) and not data.records.keys() & {"val", "candidates"}
    return trainer.enable_validation and not without


_LOGGED = (*MEASURES, "acc_p_chance", "acc_cloze_p_chance")
