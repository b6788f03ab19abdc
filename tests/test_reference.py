"""Every way to a reference against a separately loaded model: its values, and the policy's gradients."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rerank.backbone import BackboneSettings, load_backbone, trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.losses import dpo_loss, segment_mean
from lit_rerank.reference import REFERENCE, AdapterOff, FrozenAdapter, Precomputed, Reference, SeparateModel
from lit_rerank.scoring import token_logps
from lit_rerank.targets import PreferenceTargets
from tests.references import randomise, save_adapter, separately_loaded, start, values_of
from tests.test_scoring import assert_same_gradients, gradients


@pytest.fixture(params=[False, True], ids=["plain", "checkpointing"])
def checkpointing(request: pytest.FixtureRequest) -> bool:
    return request.param


# The ways to a reference, and where training starts: from SFT's adapter, a fresh adapter, or with every weight.
WAYS: dict[str, tuple[str, Callable[[Path], Reference]]] = {
    "frozen adapter": ("sft", lambda _: FrozenAdapter()),
    "adapter off": ("fresh", lambda _: AdapterOff()),
    "separate under LoRA": ("sft", lambda _: SeparateModel()),
    "separate under a fresh adapter": ("fresh", lambda _: SeparateModel()),
    "separate under full": ("full", lambda _: SeparateModel()),
    "precomputed of frozen adapter": ("sft", lambda path: Precomputed(str(path), of=FrozenAdapter())),
    "precomputed of separate": ("full", lambda path: Precomputed(str(path), of=SeparateModel())),
    "precomputed": ("sft", lambda path: Precomputed(str(path))),
}


def dpo_gradients(
    policy: PreTrainedModel, targets: PreferenceTargets, reference: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """The policy's gradients, with the reference asked first and the same dropout every time."""
    reference_logps = targets.completion_logps(reference())
    torch.manual_seed(0)
    logps = targets.completion_logps(token_logps(policy, targets.packed))
    losses, *_ = dpo_loss(*logps, *reference_logps, beta=0.5)
    return gradients(policy, segment_mean(losses, targets.window, targets.windows).mean())


def autocast(enabled: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients_are_those_of_a_separate_model(
    way: str, bf16: bool, checkpointing: bool, tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    origin, make = WAYS[way]
    settings = start(origin, tiny_model, sft)
    separate = separately_loaded(settings)
    with autocast(bf16):
        expected = values_of(separate, targets)
        plain = load_backbone(start(origin, tiny_model, sft, gradient_checkpointing=checkpointing))
        randomise(plain, seed=7)
        expected_gradients = dpo_gradients(plain, targets, lambda: expected)

        if way == "precomputed":
            stored = Precomputed(str(tmp_path), of=FrozenAdapter())
            stored.attach(load_backbone(settings), settings)
            stored.token_logps(targets.packed)
            stored.save()
        policy = load_backbone(start(origin, tiny_model, sft, gradient_checkpointing=checkpointing))
        reference = make(tmp_path)
        reference.attach(policy, settings)
        randomise(policy, seed=7)
        found = reference.token_logps(targets.packed)
        found_gradients = dpo_gradients(policy, targets, lambda: reference.token_logps(targets.packed))

    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (token_logps(policy.eval(), targets.packed) - expected).abs().max() > 0.1  # the policy has moved away
    # In bfloat16 batches of other shapes round otherwise, to 8 bits: logits of 10 by 0.03, gradients by some percent.
    tolerance = {"atol": 0.15, "rtol": 0.02} if bf16 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found, expected, **tolerance)
    assert_same_gradients(expected_gradients, found_gradients, rtol=0.08 if bf16 else 1e-3)


@pytest.mark.parametrize("way", ["frozen adapter", "adapter off", "separate under LoRA"])
def test_values_stay_while_the_policy_trains(
    way: str, checkpointing: bool, tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    origin, make = WAYS[way]
    settings = start(origin, tiny_model, sft, gradient_checkpointing=checkpointing)
    policy, reference = load_backbone(settings), make(tmp_path)
    reference.attach(policy, settings)
    before = reference.token_logps(targets.packed)
    own = token_logps(policy, targets.packed).detach()
    trained = trainable_parameters(policy)
    assert trained
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    for _ in range(3):
        logps = targets.completion_logps(token_logps(policy, targets.packed))
        frozen = targets.completion_logps(reference.token_logps(targets.packed))  # in between: it must do no harm
        dpo_loss(*logps, *frozen, beta=0.5)[0].mean().backward()
        assert all(p.grad is not None for p in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        assert trainable_parameters(policy).keys() == trained.keys()
    assert torch.equal(reference.token_logps(targets.packed), before)
    assert (token_logps(policy, targets.packed) - own).abs().max() > 0.1


# -- the frozen adapter ---------------------------------------------------------------------------------------------


def frozen_copy(policy: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if f".{REFERENCE}." in name}


def test_the_frozen_adapter_is_never_trained(
    checkpointing: bool, tiny_model: Path, sft: Path, targets: PreferenceTargets
) -> None:
    settings = start("sft", tiny_model, sft, gradient_checkpointing=checkpointing)
    policy, reference = load_backbone(settings), FrozenAdapter()
    reference.attach(policy, settings)
    frozen = frozen_copy(policy)
    before = {name: p.clone() for name, p in frozen.items()}
    assert len(before) == 2 * 2 * 7  # A and B, 2 layers of 7 linear ones
    during = []
    policy.get_submodule("base_model.model.lm_head").register_forward_hook(
        lambda *_: during.append((policy.active_adapter, any(p.requires_grad for p in frozen.values())))
    )
    # Given everything that there is, the optimizer changes only what has a gradient; weight decay would show.
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        assert not any(p.requires_grad for p in frozen.values())
        frozen_logps = targets.completion_logps(reference.token_logps(targets.packed))
        assert not any(p.requires_grad for p in frozen.values())
        logps = targets.completion_logps(token_logps(policy, targets.packed))
        dpo_loss(*logps, *frozen_logps, beta=0.5)[0].mean().backward()
        assert all(p.grad is None for p in frozen.values())
        optimizer.step()
    assert during == 3 * [(REFERENCE, False), ("default", False)]
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())


def test_base_weights_are_there_once(tiny_model: Path, sft: Path) -> None:
    settings = start("sft", tiny_model, sft)
    policy = load_backbone(settings)
    before = {name: (p.data_ptr(), p.numel()) for name, p in policy.named_parameters()}
    FrozenAdapter().attach(policy, settings)
    after = {name: (p.data_ptr(), p.numel()) for name, p in policy.named_parameters()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == frozen_copy(policy).keys()
    assert policy.active_adapter == "default"
    assert sum(p.numel() for p in frozen_copy(policy).values()) == sum(
        p.numel() for p in trainable_parameters(policy).values()
    )


def test_another_adapter_may_be_the_reference(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    other = save_adapter(tiny_model, tmp_path / "other", seed=2)
    settings = start("fresh", tiny_model, sft)
    policy, reference = load_backbone(settings), FrozenAdapter(str(other))
    reference.attach(policy, settings)
    expected = values_of(separately_loaded(BackboneSettings(str(tiny_model), adapter=str(other))), targets)
    torch.testing.assert_close(reference.token_logps(targets.packed), expected, atol=1e-4, rtol=1e-4)


def test_a_failing_pass_leaves_the_policy_as_it_was(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = start("sft", tiny_model, sft)
    policy, reference = load_backbone(settings), FrozenAdapter()
    reference.attach(policy, settings)
    trained = trainable_parameters(policy).keys()

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("lit_rerank.reference.token_logps", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        reference.token_logps(targets.packed)
    assert policy.active_adapter == "default"
    assert policy.training
    assert trainable_parameters(policy).keys() == trained


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["frozen adapter", "adapter off", "separate under LoRA"])
def test_modes_are_restored_and_dropout_is_off(
    way: str, training: bool, tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    origin, make = WAYS[way]
    settings = start(origin, tiny_model, sft)
    policy, reference = load_backbone(settings), make(tmp_path)
    reference.attach(policy, settings)
    assert policy.training
    policy.train(training)  # as Lightning does after a validation; the frozen adapter's dropout is part of the policy
    if training:
        policy.get_submodule("base_model.model.lm_head").eval()  # a part whose mode was set by hand
    before = [(name, module.training) for name, module in policy.named_modules()]
    values = [reference.token_logps(targets.packed) for _ in range(2)]
    assert torch.equal(*values)
    assert [(name, module.training) for name, module in policy.named_modules()] == before
    if training:  # whereas the policy itself has dropout
        randomise(policy, seed=3)
        assert not torch.equal(*(token_logps(policy, targets.packed) for _ in range(2)))


# -- what does not fit ----------------------------------------------------------------------------------------------


def test_adapter_off_is_not_the_sft_reference(tiny_model: Path, sft: Path, targets: PreferenceTargets) -> None:
    settings = start("sft", tiny_model, sft)
    policy = load_backbone(settings)
    reference = AdapterOff()
    with pytest.raises(UserError, match="bare base model; choose FrozenAdapter"):
        reference.attach(policy, settings)
    reference.attach(policy, start("fresh", tiny_model, sft))
    difference = reference.token_logps(targets.packed) - values_of(separately_loaded(settings), targets)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize(
    ("reference", "origin", "match"),
    [
        (FrozenAdapter(), "full", "needs an adapter"),
        (FrozenAdapter(), "fresh", "needs an adapter"),
        (FrozenAdapter("nowhere"), "full", "needs an adapter"),
        (FrozenAdapter("nowhere"), "fresh", "no adapter directory 'nowhere'"),
        (AdapterOff(), "full", "choose SeparateModel"),
        (SeparateModel("nowhere"), "full", "no model directory 'nowhere'"),
        (Precomputed("nowhere"), "full", "no precomputed reference values at nowhere: set reference.of"),
    ],
)
def test_references_that_do_not_fit(reference: Reference, origin: str, match: str, tiny_model: Path, sft: Path) -> None:
    settings = start(origin, tiny_model, sft)
    with pytest.raises(UserError, match=match) as error:
        reference.attach(load_backbone(settings), settings)
    assert "\n" not in str(error.value)


# -- a separate model -----------------------------------------------------------------------------------------------


def test_a_separate_model_can_be_chosen(tiny_model: Path, sft: Path, targets: PreferenceTargets) -> None:
    """The base model and SFT's adapter as reference of full fine-tuning that starts from the merged model, say."""
    settings = start("full", tiny_model, sft)
    reference = SeparateModel(str(tiny_model), str(sft), dtype="bfloat16")
    reference.attach(load_backbone(settings), settings)
    assert not trainable_parameters(reference.separate)
    assert reference.separate.dtype == torch.bfloat16
    expected = values_of(separately_loaded(start("sft", tiny_model, sft)), targets)
    torch.testing.assert_close(reference.token_logps(targets.packed), expected, atol=0.3, rtol=0.05)


def test_a_separate_model_can_be_quantised(tiny_model: Path, sft: Path, targets: PreferenceTargets) -> None:
    settings = start("sft", tiny_model, sft, load_in_4bit=True, dtype="float32")
    policy = load_backbone(settings)
    reference = SeparateModel()
    reference.attach(policy, settings)
    expected = values_of(policy.eval(), targets)
    torch.testing.assert_close(reference.token_logps(targets.packed), expected, atol=1e-4, rtol=1e-4)
