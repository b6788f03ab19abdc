"""Supervised fine-tuning as a LightningModule."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lit_rerank.backbone import BackboneSettings
from lit_rerank.encoding import EncodedWindow, PromptSettings
from lit_rerank.modules import Figures, Questions, ReplayLoss, RerankModule
from lit_rerank.packing import Packer
from lit_rerank.settings import OptimizerSettings, RerankSettings, check_weights
from lit_rerank.targets import SFTTargets


class SFTModule(RerankModule[EncodedWindow]):
    """Supervised fine-tuning on teacher permutations: cross-entropy of the completion.

    Args:
        choice_weight: weight of the choices' tokens in a window's mean.
        remaining_weight: the same where the teacher's order is unknown and any identifier that remains is right; all
            tokens that are no choice weigh 1.
        normalise_choices: take a choice's probability over the identifiers that remain, not over the vocabulary.
        replay_weight: weight of a replayed conversation in the step's mean, where a window weighs 1.
        replay_loss: what is learned of it: its tokens (`cross_entropy`), or, for each of them, how likely every token
            is to the model without its adapter (`distillation`).
    """

    teaches_format = True

    def __init__(
        self,
        backbone: BackboneSettings,
        prompt: PromptSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reranking: RerankSettings | None = None,
        choice_weight: float = 1.0,
        remaining_weight: float = 1.0,
        normalise_choices: bool = False,
        replay_weight: float = 1.0,
        replay_loss: ReplayLoss = "cross_entropy",
    ) -> None:
        super().__init__(backbone, prompt, optimizer, reranking, replay_weight, replay_loss)
        check_weights(choice_weight=choice_weight, remaining_weight=remaining_weight)
        self.choice_weight, self.remaining_weight = choice_weight, remaining_weight
        self.normalise_choices = normalise_choices

    def questions(self, windows: Sequence[EncodedWindow]) -> Questions:
        if not windows:
            return Questions(Packer(), lambda _: (torch.empty(0, device=self.device), {}))
        targets = SFTTargets.build(windows, self.device)
        return Questions(targets.packer, partial(self._losses, targets))

    def _losses(self, targets: SFTTargets, logps: Tensor) -> tuple[Tensor, Figures]:
        loss = targets.loss(logps, self.choice_weight, self.remaining_weight, self.normalise_choices)
        figures: dict[str, tuple[Tensor | float, int]] = {
            "choice_loss": (loss.choice, targets.windows),
            "choice_nll": (loss.choice_nll, targets.windows),
            "rest_loss": (loss.rest, targets.windows),
            "choice_accuracy": (loss.accuracy, targets.windows),
            "no_skill": (targets.no_skill, targets.windows),
        }
        if targets.unordered_windows:
            figures["remaining_loss"] = (loss.remaining, targets.unordered_windows)
        return loss.windows, figures
