"""The losses as pure functions of log-probabilities; nothing here knows of models or batches."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

DPOKind = Literal["sigmoid", "ipo", "hinge", "robust"]


def segment_mean(values: Tensor, segment: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of the `values` of each segment 0..count-1: (count,). A segment without weight has mean 0."""
    weights = torch.ones_like(values) if weights is None else weights
    total = values.new_zeros(count).index_add(0, segment, values * weights)
    weight = values.new_zeros(count).index_add(0, segment, weights)
    return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: DPOKind = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct Preference Optimization (Rafailov et al. 2023, equation 7) and its variants.

    The margin `m` of a preference is beta times how much more the policy has raised the chosen completion over the
    reference than the rejected one. Several rejected completions of one state are joined into one margin by
    log-sum-exp (S-DPO, Chen et al. 2024); with one it is the plain difference.

        sigmoid  -(1 - e) log s(m) - e log s(-m)                    e > 0: cDPO (Mitchell 2023)
        ipo      (m / beta - 1 / (2 beta))^2                        Azar et al. 2023
        hinge    max(0, 1 - m)                                      SLiC, Zhao et al. 2023
        robust   [-(1 - e) log s(m) + e log s(-m)] / (1 - 2 e)      Chowdhury et al. 2024

    Args:
        policy_chosen, reference_chosen: (preferences,) summed log-probabilities of the chosen completions.
        policy_rejected, reference_rejected: (preferences, most rejected) the same of the rejected ones; -inf in
            both where a preference has fewer.
        beta: strength of the tie to the reference.
        label_smoothing: `e`, the share of preferences taken to be the wrong way round (sigmoid and robust).

    Returns:
        (preferences,) losses, chosen rewards and rewards of the best rejected completion.
    """
    chosen = beta * (policy_chosen - reference_chosen)
    absent = reference_rejected.isneginf()
    rejected = (beta * (policy_rejected - reference_rejected)).masked_fill(absent, -torch.inf)
    margin = chosen - rejected.logsumexp(-1)
    e = label_smoothing
    if kind == "sigmoid":
        losses = -(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin)
    elif kind == "ipo":
        losses = ((margin - 0.5) / beta) ** 2
    elif kind == "hinge":
        losses = relu(1 - margin)
    elif kind == "robust":
        losses = (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)
    else:
        raise ValueError(f"unknown DPO loss {kind!r}")
    return losses, chosen.detach(), rejected.detach().amax(-1)
