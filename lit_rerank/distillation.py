"""What a model knew before, which replay can hold it to: learning without forgetting (Li and Hoiem 2016).

The teacher is the model without its adapter: one copy of the base weights serves both. Where cross-entropy learns the
token that a text happens to go on with, the teacher says how likely every token was; where nothing is lost, there is
nothing to learn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rerank.backbone import is_adapted
from lit_rerank.errors import UserError
from lit_rerank.frozen import frozen
from lit_rerank.packing import Packer
from lit_rerank.replay import EncodedConversation, ReplayTargets
from lit_rerank.scale import check_base_is_kept
from lit_rerank.scoring import ask
from lit_rerank.sharding import idle

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_distillable(model: "PreTrainedModel") -> None:
    """Refuse a model that does not know any more what it was before.

    Raises:
        UserError: if it has no adapter, or one that changes the base weights.
    """
    if not is_adapted(model):
        raise UserError(
            "replay_loss distillation asks the model without its adapter: set model.init_args.backbone.tune to lora, "
            "or replay_loss to cross_entropy"
        )
    check_base_is_kept(model, "set replay_loss to cross_entropy")


def base_distributions(
    model: "PreTrainedModel", conversations: Sequence[EncodedConversation], device: torch.device
) -> Tensor:
    """Log-probabilities of the vocabulary by the model without its adapter, for each token that the conversations are
    to teach: (tokens, vocabulary). It reads even where there are none, as other processes may have to."""
    packer = Packer()
    targets = ReplayTargets.ask(packer, conversations, device)
    adapted: Any = model
    with adapted.disable_adapter(), frozen(model):
        answers = ask(model, packer.pack(device) if conversations else idle(device))
        return answers.logits_of(targets.asked).log_softmax(-1)


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence from a teacher's distributions to a model's own, in nats: (tokens,).

    Args:
        teacher: (tokens, vocabulary) log-probabilities.
        logits: (tokens, vocabulary) of the model.
    """
    p = teacher.exp()
    return (p * teacher).sum(-1) - (p * logits).sum(-1) + logits.logsumexp(-1)
