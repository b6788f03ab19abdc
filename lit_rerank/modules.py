"""The two LightningModules. What they share is the base class; each adds only its objective."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from torch import Tensor

from data_modules.records import RankingRecord
from lit_rerank.backbone import BackboneSettings, context_length, load_backbone, load_tokenizer, trainable_parameters
from lit_rerank.decoding import Generator
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.losses import DPOKind, dpo_loss, segment_mean
from lit_rerank.metrics import TrecMetrics
from lit_rerank.preferences import PreferenceExample, pick_rejected
from lit_rerank.reference import FrozenAdapter, Reference
from lit_rerank.reranker import Ranking, SlidingWindow, rerank
from lit_rerank.rng import rng_state, set_rng_state
from lit_rerank.scoring import token_logps
from lit_rerank.targets import ChoiceTargets, PreferenceTargets, SFTTargets

Example = TypeVar("Example", EncodedWindow, PreferenceExample)


@dataclass
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay to zero, over all steps of the run (`max_steps` where it is set).

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled.
        warmup: share of all steps.
        betas: decay of the first and second moment.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class RerankSettings:
    """How validation, test and predict rerank candidates (see `SlidingWindow`); batch_size windows at a time."""

    window: int = 20
    stride: int = 10
    depth: int = 100
    batch_size: int = 8
    measures: tuple[str, ...] = ("nDCG@10", "RR@10")

    @property
    def sliding(self) -> SlidingWindow:
        return SlidingWindow(self.window, self.stride, self.depth)


@dataclass
class Objective:
    """What a batch says: the loss of each of its windows that has one, and figures to log."""

    windows: Tensor
    tokens: int
    figures: Mapping[str, Tensor | float]


class RerankModule(L.LightningModule, Generic[Example]):
    """A listwise LLM reranker in training.

    One loss unit everywhere: the mean over the windows of an optimizer step, whatever batch size, accumulation and
    number of processes the step is made of. So a training step returns the *sum* over its windows, and the gradients
    are divided by the step's number of windows just before they are used.
    """

    def __init__(
        self,
        backbone: BackboneSettings,
        prompt: PromptSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reranking: RerankSettings | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompt = prompt or PromptSettings()
        self.optimizer = optimizer or OptimizerSettings()
        self.reranking = reranking or RerankSettings()
        self.strict_loading = False  # checkpoints hold only what is trained
        self.ranking_metrics = TrecMetrics(self.reranking.measures)
        self._step_windows = 0
        self._resumed_rng: dict[str, Any] | None = None
        self.tokens_read = 0

    # -- the model ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        name, trust = self.backbone.model, self.backbone.trust_remote_code
        self.encoder = WindowEncoder(load_tokenizer(name, trust), self.prompt, context_length(name, trust))
        self.model = load_backbone(self.backbone)

    def objective(self, batch: Sequence[Example]) -> Objective | None:
        """The loss of each window of a batch; None where no window has one."""
        raise NotImplementedError

    # -- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """The summed loss of the batch's windows."""
        objective = self.objective(batch)
        if objective is None:  # nothing to learn here, but every process must take part in the backward pass
            return 0.0 * torch.stack([p.sum() for p in trainable_parameters(self).values()]).sum()
        self._step_windows += len(objective.windows)
        self.tokens_read += objective.tokens
        self._log_objective("train", objective)
        return objective.windows.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning divides each batch's loss by accumulate_grad_batches, and DDP averages over processes.
        windows = self.trainer.strategy.reduce(torch.tensor(float(self._step_windows), device=self.device), reduce_op="sum")
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / max(float(windows), 1.0)
        gradients = [p.grad for p in trainable_parameters(self).values() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._step_windows = 0

    def configure_optimizers(self) -> Any:
        from transformers import get_cosine_schedule_with_warmup

        settings = self.optimizer
        optimizer = torch.optim.AdamW(
            trainable_parameters(self).values(), settings.lr, settings.betas, weight_decay=settings.weight_decay
        )
        # estimated_stepping_batches would set up the loaders anew, and lose where a resumed epoch stood.
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- validation, test, predict --------------------------------------------------------------------------------

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> list[Ranking] | None:
        return self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> list[Ranking] | None:
        return self._evaluate("test", batch)

    def predict_step(self, batch: Sequence[RankingRecord], batch_idx: int, dataloader_idx: int = 0) -> list[Ranking]:
        return self.rerank(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_ranking("val")

    def on_test_epoch_end(self) -> None:
        self._log_ranking("test")

    def rerank(self, records: Sequence[RankingRecord]) -> list[Ranking]:
        """The records' candidates in the order that the model as it now is puts them."""
        return rerank(
            records, Generator(self.model, self.encoder, self.reranking.batch_size), self.reranking.sliding
        )

    def _evaluate(self, stage: str, batch: Sequence[Any]) -> list[Ranking] | None:
        """Batches of candidates are reranked and measured; any others get the training objective."""
        if not isinstance(batch[0], RankingRecord):
            objective = self.objective(batch)
            if objective is not None:
                self._log_objective(stage, objective)
            return None
        rankings = self.rerank(batch)
        for ranking in rankings:
            if ranking.record.qrels:
                self.ranking_metrics.update(ranking.record.qid, ranking.run, ranking.record.qrels)
        windows = sum(len(ranking.decoded) for ranking in rankings)
        malformed = sum(ranking.malformed for ranking in rankings) / windows
        self._log(f"{stage}/malformed", malformed, windows)
        return rankings

    def _log_ranking(self, stage: str) -> None:
        for name, value in self.ranking_metrics.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=True, sync_dist=False)
        self.ranking_metrics.reset()

    def _log_objective(self, stage: str, objective: Objective) -> None:
        self._log(f"{stage}/loss", objective.windows.detach().mean(), len(objective.windows), prog_bar=True)
        for name, value in objective.figures.items():
            self._log(f"{stage}/{name}", value, len(objective.windows))

    def _log(self, name: str, value: Tensor | float, weight: int, prog_bar: bool = False) -> None:
        training = name.startswith("train/")
        self.log(
            name, value, batch_size=weight, prog_bar=prog_bar, sync_dist=not training, add_dataloader_idx=False,
            on_step=training, on_epoch=not training,
        )  # fmt: skip

    # -- checkpoints and devices ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = trainable_parameters(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["rng"] = rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = [name for name in trainable_parameters(self) if name not in checkpoint["state_dict"]]
        if missing:
            raise UserError(f"the checkpoint lacks {missing[0]!r} and {len(missing) - 1} more: it is of another backbone")
        self._resumed_rng = checkpoint.get("rng")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Only now: what Lightning does between loading and the first batch draws random numbers too.
        if self._resumed_rng is not None:
            set_rng_state(self._resumed_rng)
            self._resumed_rng = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # windows and records; tensors are made where they are used


class SFTModule(RerankModule[EncodedWindow]):
    """Supervised fine-tuning on teacher permutations: cross-entropy of the completion.

    Args:
        choice_weight: weight of the choices' tokens in a window's mean; the other tokens weigh 1.
        normalise_choices: take a choice's probability over the identifiers that remain, not over the vocabulary.
    """

    def __init__(
        self,
        backbone: BackboneSettings,
        prompt: PromptSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reranking: RerankSettings | None = None,
        choice_weight: float = 1.0,
        normalise_choices: bool = False,
    ) -> None:
        super().__init__(backbone, prompt, optimizer, reranking)
        self.choice_weight, self.normalise_choices = choice_weight, normalise_choices
        _save_settings(self)

    def objective(self, batch: Sequence[EncodedWindow]) -> Objective:
        targets = SFTTargets.build(batch, self.device)
        loss = targets.loss(token_logps(self.model, targets.rows), self.choice_weight, self.normalise_choices)
        figures = {
            "choice_loss": loss.choice,
            "choice_nll": loss.choice_nll,
            "rest_loss": loss.rest,
            "choice_accuracy": loss.accuracy,
            "no_skill": targets.no_skill,
        }
        return Objective(loss.windows, targets.rows.tokens, figures)


class DPOModule(RerankModule[PreferenceExample]):
    """Direct Preference Optimization on step preferences (or on any pairs).

    Args:
        reference: the frozen model to compare with; by default the adapter that training starts from.
        beta: strength of the tie to the reference.
        loss: `sigmoid`, `ipo`, `hinge` or `robust` (see `dpo_loss`).
        label_smoothing: share of preferences taken to be the wrong way round (sigmoid: cDPO; robust).
        sft_weight: weight of the chosen completions' mean cross-entropy per token, added to the loss.
    """

    def __init__(
        self,
        backbone: BackboneSettings,
        reference: Reference | None = None,
        prompt: PromptSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reranking: RerankSettings | None = None,
        beta: float = 0.1,
        loss: DPOKind = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float = 0.0,
    ) -> None:
        super().__init__(backbone, prompt, optimizer, reranking)
        if beta <= 0 or not 0 <= label_smoothing < 0.5:
            raise UserError(f"beta {beta} must be above 0, label_smoothing {label_smoothing} in [0, 0.5)")
        if label_smoothing and loss not in ("sigmoid", "robust"):
            raise UserError(f"label_smoothing has no meaning for the loss {loss!r}; use sigmoid or robust")
        self.reference = reference or FrozenAdapter()
        self.beta, self.loss, self.label_smoothing, self.sft_weight = beta, loss, label_smoothing, sft_weight
        _save_settings(self)

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            super().configure_model()
            self.reference.attach(self.model, self.backbone)

    def objective(self, batch: Sequence[PreferenceExample]) -> Objective | None:
        targets = PreferenceTargets.build(self._picked(batch), self.device)
        if targets is None:
            return None
        reference = targets.completion_logps(self.reference.token_logps(targets.rows))
        policy = targets.completion_logps(token_logps(self.model, targets.rows))
        losses, chosen, rejected = dpo_loss(*policy, *reference, self.beta, self.loss, self.label_smoothing)
        nll = -policy[0] / targets.length[targets.chosen]

        def mean(values: Tensor) -> Tensor:
            return segment_mean(values, targets.window, targets.windows)

        right = (chosen > rejected).to(losses.dtype)
        figures: dict[str, Tensor] = {
            "rewards/chosen": mean(chosen).mean(),
            "rewards/rejected": mean(rejected).mean(),
            "rewards/margin": mean(chosen - rejected).mean(),
            "rewards/accuracy": mean(right).mean(),
            "chosen_nll": mean(nll.detach()).mean(),
            "preferences": losses.new_tensor(len(losses) / len(batch)),
        }
        for step in targets.step.unique().tolist():
            figures[f"accuracy_by_step/{step:02d}"] = right[targets.step == step].mean()
        return Objective(mean(losses + self.sft_weight * nll), targets.rows.tokens, figures)

    def _picked(self, batch: Sequence[PreferenceExample]) -> list[PreferenceExample]:
        """The batch with the rejected completions that the reference picks, where it is to pick."""
        to_pick = [example for example in batch if example.pick and example.preferences]
        if not to_pick:
            return list(batch)
        targets = ChoiceTargets.build(to_pick, self.device)
        scores = iter(targets.scores(self.reference.token_logps(targets.rows)))
        return [pick_rejected(e, next(scores)) if e.pick and e.preferences else e for e in batch]

    def on_validation_end(self) -> None:
        self.reference.save()

    def on_train_end(self) -> None:
        self.reference.save()


def _save_settings(module: RerankModule[Any]) -> None:
    """Hyperparameters as plain values, for the checkpoint and TensorBoard."""
    module.save_hyperparameters(
        {
            "module": type(module).__name__,
            "backbone": asdict(module.backbone),
            "prompt": asdict(module.prompt),
            "optimizer": asdict(module.optimizer),
        }
    )
