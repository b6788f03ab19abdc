"""Direct Preference Optimization as a LightningModule."""

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_rerank.backbone import BackboneSettings
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.losses import DPOKind, dpo_loss, segment_mean
from lit_rerank.modules import Figures, Questions, ReplayLoss, RerankModule
from lit_rerank.packing import Packer
from lit_rerank.preferences import PreferenceExample
from lit_rerank.reference import FrozenAdapter, Precomputed, Reference, identity
from lit_rerank.settings import OptimizerSettings, RerankSettings, check_weights
from lit_rerank.sharding import idle, is_sharded
from lit_rerank.targets import PreferenceTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPOModule(RerankModule[PreferenceExample]):
    """Direct Preference Optimization on step preferences (or on any pairs).

    Args:
        reference: the frozen model to compare with; by default the adapter that training starts from.
        beta: strength of the tie to the reference.
        loss: `sigmoid`, `ipo`, `hinge` or `robust` (see `dpo_loss`).
        label_smoothing: share of preferences taken to be the wrong way round (sigmoid: cDPO; robust).
        sft_weight: weight of the chosen completions' mean cross-entropy per token, added to the loss.
        step_weights: how a window's steps are weighed: `uniform`, or `ndcg`, by the nDCG that their wrong choices cost
            (of several, in the mean; a window whose passages are all judged alike, and above 0, then has no loss but
            sft_weight's; where all are judged 0, ranks count).
        replay_weight: weight of a replayed conversation in the step's mean, where a window weighs 1.
        replay_loss: what is learned of it: its tokens (`cross_entropy`), or, for each of them, how likely every token
            is to the model without its adapter (`distillation`).
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
        step_weights: Literal["uniform", "ndcg"] = "uniform",
        replay_weight: float = 1.0,
        replay_loss: ReplayLoss = "cross_entropy",
    ) -> None:
        super().__init__(backbone, prompt, optimizer, reranking, replay_weight, replay_loss)
        check_weights(sft_weight=sft_weight)
        if not 0 < beta < inf or not 0 <= label_smoothing < 0.5:
            raise UserError(f"beta {beta} must be above 0, label_smoothing {label_smoothing} in [0, 0.5)")
        if label_smoothing and loss not in ("sigmoid", "robust"):
            raise UserError(f"label_smoothing has no meaning for the loss {loss!r}; use sigmoid or robust")
        self.reference = reference or FrozenAdapter()
        self.beta, self.loss, self.label_smoothing = beta, loss, label_smoothing
        self.sft_weight, self.step_weights = sft_weight, step_weights

    def load_model(self) -> "PreTrainedModel":
        if self.device_mesh is not None and isinstance(self.reference, Precomputed) and self.reference.of is not None:
            raise UserError(  # only the process that lacks some would read
                "with FSDP, reference Precomputed must know all values: make them with trainer.strategy ddp or on one "
                "device, then leave reference.of out"
            )
        model = super().load_model()
        self.reference.attach(model, self.backbone)
        return model.train()  # whatever attaching a frozen one has switched off

    def foundation(self) -> dict[str, Any]:
        """Also, what the reference is."""
        model, adapter, _ = self.reference.weights(self.backbone)
        return super().foundation() | {
            "the reference's model": "the policy's" if model == self.backbone.model else identity(model),
            "the reference's adapter": "none" if adapter is None else identity(adapter),
        }

    def questions(self, windows: Sequence[PreferenceExample]) -> Questions:
        candidates = PreferenceTargets.build(windows, self.device)
        if candidates is None and is_sharded(self.model) and not isinstance(self.reference, Precomputed):
            self.reference.token_logps(idle(self.device))
        picked = None if candidates is None else candidates.picked(self.reference.token_logps(candidates.packed))
        if picked is None:
            none = torch.empty(0, device=self.device)
            return Questions(Packer(), lambda _: (none, {"preferences": (0.0, len(windows))}))
        targets, reference = picked
        return Questions(targets.packer, partial(self._losses, targets, reference, len(windows)))

    def _losses(
        self, targets: PreferenceTargets, reference: tuple[Tensor, Tensor], windows: int, logps: Tensor
    ) -> tuple[Tensor, Figures]:
        policy = targets.completion_logps(logps)
        losses, chosen, rejected = dpo_loss(*policy, *reference, self.beta, self.loss, self.label_smoothing)
        nll = -policy[0] / targets.length[targets.chosen]

        def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
            return segment_mean(values, targets.window, targets.windows, weights)

        right = (chosen > rejected).to(losses.dtype)
        by_window = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
            "rewards/accuracy": right,
            "chosen_nll": nll.detach(),
        }
        of_steps = {"accuracy": right, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
        by_step = {
            f"{name}_by_step/{step:02d}": values[targets.step == step]
            for name, values in of_steps.items()
            for step in targets.step.unique().tolist()
        }
        figures: dict[str, tuple[Tensor | float, int]] = {
            "preferences": (len(losses) / windows, windows),
            **{name: (mean(values).mean(), targets.windows) for name, values in by_window.items()},
            **{name: (values.mean(), len(values)) for name, values in by_step.items()},
        }
        weights = targets.lost if self.step_weights == "ndcg" else None
        return mean(losses, weights) + self.sft_weight * mean(nll), figures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.reference.save()  # a resumed run does not ask again what this one has asked

    def on_validation_end(self) -> None:
        self.reference.save()

    def on_train_end(self) -> None:
        self.reference.save()
