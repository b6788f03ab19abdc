"""The losses against numbers worked out by hand, and their gradients against finite differences."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lit_rerank.losses import dpo_loss, segment_mean

INF = float("inf")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The chosen completion rises by 1 over the reference (-1 against -2), the rejected one falls by 0.5 (-3 against -2.5).
POLICY_CHOSEN, REFERENCE_CHOSEN = tensor(-1.0), tensor(-2.0)
POLICY_REJECTED, REFERENCE_REJECTED = tensor(-3.0)[None], tensor(-2.5)[None]
BETA = 0.5  # so the margin m is 0.5 * (1 + 0.5) = 0.75
ONE_REJECTED = (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, BETA)


@pytest.mark.parametrize(
    ("kind", "label_smoothing", "expected"),
    [
        # -log s(0.75) = log(1 + e^-0.75) = log(1 + 0.4723665527)
        ("sigmoid", 0.0, 0.3868710061),
        # 0.9 * 0.3868710061 + 0.1 * log(1 + e^0.75) = 0.3481839055 + 0.1 * 1.1368710061
        ("sigmoid", 0.1, 0.4618710061),
        # the difference is 1.5, its target 1 / (2 * 0.5) = 1: (1.5 - 1)^2
        ("ipo", 0.0, 0.25),
        # 1 - 0.75
        ("hinge", 0.0, 0.25),
        ("robust", 0.0, 0.3868710061),
        # (0.9 * 0.3868710061 - 0.1 * 1.1368710061) / 0.8 = (0.3481839055 - 0.1136871006) / 0.8
        ("robust", 0.1, 0.2931210061),
    ],
)
def test_one_rejected(kind: str, label_smoothing: float, expected: float) -> None:
    losses, chosen, rejected = dpo_loss(*ONE_REJECTED, kind, label_smoothing)
    torch.testing.assert_close(losses, tensor(expected))
    torch.testing.assert_close((chosen, rejected), (tensor(0.5), tensor(-0.25)))  # 0.5 * 1, 0.5 * -0.5


def test_hinge_is_zero_beyond_the_margin() -> None:
    losses, *_ = dpo_loss(*ONE_REJECTED[:-1], beta=1.0, kind="hinge")  # m = 1.5
    assert losses.tolist() == [0.0]


def test_several_rejected_join_by_log_sum_exp() -> None:
    # The rewards are 0.5, and of the rejected 0.5 * -0.5 = -0.25 and 0.5 * (-1 + 2.5) = 0.75;
    # log(e^-0.25 + e^0.75) = log(0.7788007831 + 2.1170000166) = 1.0632616875, so m = -0.5632616875
    # and -log s(m) = log(1 + e^0.5632616875) = log(2.7563911...)
    policy, reference = tensor(-3.0, -1.0)[None], tensor(-2.5, -2.5)[None]
    losses, chosen, rejected = dpo_loss(POLICY_CHOSEN, policy, REFERENCE_CHOSEN, reference, BETA)
    torch.testing.assert_close(losses, tensor(1.0139225671))
    torch.testing.assert_close((chosen, rejected), (tensor(0.5), tensor(0.75)))


def test_against_a_uniform_reference_it_is_the_cross_entropy_among_candidates() -> None:
    chosen, rejected = tensor(-0.3, -2.0), torch.tensor([[-1.0, -4.0, -2.5], [-0.2, -1.0, -3.0]], dtype=torch.float64)
    uniform = torch.full_like(chosen, -1.4), torch.full_like(rejected, -1.4)
    losses, *_ = dpo_loss(chosen, rejected, *uniform, beta=1.0)
    expected = -torch.cat([chosen[:, None], rejected], -1).log_softmax(-1)[:, 0]
    torch.testing.assert_close(losses, expected)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown DPO loss 'kto'"):
        dpo_loss(*ONE_REJECTED, "kto")  # type: ignore[arg-type]


ABSENT = torch.tensor([[False, False, False], [False, True, True]])
VARIANTS = [("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.2)]


def padded_losses(kind: str, label_smoothing: float, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Two preferences, of three and of one rejected completion."""
    reference = tensor(-1.0, -2.0), torch.tensor([[-1.0, -2.0, -1.5], [-3.0, -INF, -INF]], dtype=torch.float64)
    return dpo_loss(chosen, rejected.masked_fill(ABSENT, -INF), *reference, 0.7, kind, label_smoothing)[0]


@pytest.mark.parametrize(("kind", "label_smoothing"), VARIANTS)
def test_gradients(kind: str, label_smoothing: float) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [
        (-3 * torch.rand(shape, generator=draw, dtype=torch.float64)).requires_grad_() for shape in ((2,), (2, 3))
    ]
    losses = partial(padded_losses, kind, label_smoothing)
    assert torch.autograd.gradcheck(losses, inputs)
    losses(*inputs).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs)
    assert not inputs[1].grad[ABSENT].any()


@pytest.mark.parametrize(("kind", "label_smoothing"), VARIANTS)
def test_padding_changes_nothing(kind: str, label_smoothing: float) -> None:
    chosen, rejected = tensor(-0.5, -1.0), torch.tensor([[-2.0, -1.0, -3.0], [-2.0, -1.0, -3.0]], dtype=torch.float64)
    losses = padded_losses(kind, label_smoothing, chosen, rejected)
    alone, _, reward = dpo_loss(
        tensor(-1.0), tensor(-2.0)[None], tensor(-2.0), tensor(-3.0)[None], 0.7, kind, label_smoothing
    )
    torch.testing.assert_close(losses[1:], alone)
    torch.testing.assert_close(reward, tensor(0.7))


def test_rewards_carry_no_gradient() -> None:
    _, chosen, rejected = dpo_loss(POLICY_CHOSEN.clone().requires_grad_(), *ONE_REJECTED[1:])
    assert not chosen.requires_grad
    assert not rejected.requires_grad


def test_segment_mean() -> None:
    values, segment = tensor(1.0, 2.0, 6.0, 5.0), torch.tensor([0, 0, 2, 2])
    torch.testing.assert_close(segment_mean(values, segment, 3), tensor(1.5, 0.0, 5.5))
    # (1 * 1 + 3 * 2) / 4, nothing, (0 * 6 + 2 * 5) / 2
    torch.testing.assert_close(segment_mean(values, segment, 3, tensor(1, 3, 0, 2)), tensor(1.75, 0.0, 5.0))


def test_segment_mean_of_no_weight_has_no_gradient() -> None:
    values = tensor(1.0, 2.0, 3.0).requires_grad_()
    segment, weights = torch.tensor([0, 1, 1]), tensor(0, 1, 1)
    assert torch.autograd.gradcheck(lambda x: segment_mean(x, segment, 3, weights), values)
    segment_mean(values, segment, 3, weights).sum().backward()
    torch.testing.assert_close(values.grad, tensor(0.0, 0.5, 0.5))
