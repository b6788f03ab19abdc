"""Replay that is held to what the model says without its adapter, against a plain twin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rerank import DPOModule, SFTModule
from lit_rerank.backbone import BackboneSettings, layers_of, trainable_parameters
from lit_rerank.distillation import check_distillable
from lit_rerank.errors import UserError
from lit_rerank.modules import RerankModule
from lit_rerank.replay import EncodedConversation
from lit_rerank.settings import OptimizerSettings
from tests.test_modules import dpo, fit, preferences
from tests.test_modules import encoder as encoder
from tests.test_modules import windows as windows
from tests.test_replay import conversations as conversations
from tests.test_replay import examples as examples
from tests.test_scoring import assert_same_gradients, gradients
from tests.training import figures

__all__ = ["preferences"]


def adapted(tiny_model: Path, task: str, **backbone: Any) -> RerankModule[Any]:
    """One whose adapter has learnt something already, and whose replay is held to what the model was before."""
    if task == "dpo":
        module: RerankModule[Any] = dpo(tiny_model)
        module.replay_loss = "distillation"
        return module
    torch.manual_seed(0)
    settings = BackboneSettings(str(tiny_model), dtype="float32", **backbone)
    module = SFTModule(settings, replay_loss="distillation")
    module.configure_model()
    with torch.no_grad():
        for parameter in trainable_parameters(module).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def distillation_loss(model: Any, conversation: EncodedConversation) -> Tensor:
    """The mean over the assistant's tokens of the divergence from the model without its adapter, text by text."""

    def distributions() -> Tensor:
        logits = model(input_ids=torch.tensor([conversation.ids])).logits[0]
        return torch.cat([logits[start - 1 : end - 1] for start, end in conversation.turns]).log_softmax(-1)

    with torch.no_grad(), model.disable_adapter():
        teacher = distributions()
    return torch.nn.functional.kl_div(distributions(), teacher, log_target=True, reduction="none").sum(-1).mean()


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_distillation_is_the_divergence_from_the_model_without_its_adapter(
    tiny_model: Path, task: str, examples: Callable[[str], list[Any]], conversations: list[EncodedConversation]
) -> None:
    module = adapted(tiny_model, task)
    module.model.train()
    batch = [conversations[0], *examples(task)[:3], *conversations[-2:]]
    found = module.objective(batch)
    assert module.model.training
    expected = torch.stack([distillation_loss(module.model, c) for c in batch if isinstance(c, EncodedConversation)])
    assert expected.min() > 1e-3
    torch.testing.assert_close(found.replay, expected, atol=1e-6, rtol=1e-4)
    ours = [e for e in batch if not isinstance(e, EncodedConversation)]
    torch.testing.assert_close(found.windows, module.objective(ours).windows, atol=1e-6, rtol=1e-5)
    assert_same_gradients(
        gradients(module.model, expected.mean()), gradients(module.model, found.replay.mean()), rtol=1e-4
    )


def test_where_nothing_was_learned_there_is_nothing_to_keep(
    tiny_model: Path, conversations: list[EncodedConversation]
) -> None:
    module = SFTModule(BackboneSettings(str(tiny_model), dtype="float32"), replay_loss="distillation")
    module.configure_model()  # a fresh adapter does nothing yet
    losses = module.objective(conversations).replay
    torch.testing.assert_close(losses, torch.zeros(len(conversations)), atol=1e-6, rtol=0)


def test_distillation_holds_a_model_to_what_it_knew(
    tiny_model: Path, tmp_path: Path, conversations: list[EncodedConversation]
) -> None:
    module = adapted(tiny_model, "sft")
    module.optimizer = OptimizerSettings(lr=1e-2)
    fit(module, tmp_path, [conversations[:2]] * 20, max_epochs=1)
    logged = figures(tmp_path)
    assert logged[20]["train/replay_loss"] < 0.2 * logged[1]["train/replay_loss"]


@pytest.mark.parametrize("way", ["4 bits", "checkpointing", "autocast", "compiled"])
def test_distillation_in_other_ways_of_computing(
    tiny_model: Path, conversations: list[EncodedConversation], way: str
) -> None:
    plain = adapted(tiny_model, "sft")
    other = adapted(tiny_model, "sft", load_in_4bit=way == "4 bits", gradient_checkpointing=way == "checkpointing")
    if way == "compiled":
        for layer in layers_of(other.model):
            layer.compile(backend="eager")
    other.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        losses = other.objective(conversations).replay
    if way == "4 bits":  # another base, and so another teacher
        assert losses.isfinite().all()
        assert losses.min() > 1e-3
    else:
        tolerance = {"autocast": 0.1}.get(way, 1e-4)
        torch.testing.assert_close(losses, plain.objective(conversations).replay, atol=1e-6, rtol=tolerance)
    found = gradients(other.model, losses.mean())
    assert found
    assert all(value.abs().max() > 0 for value in found.values())


def test_an_adapter_that_changes_the_base_is_refused(tiny_model: Path) -> None:
    module = adapted(tiny_model, "sft")
    model: Any = module.model
    model.peft_config["default"].bias = "lora_only"
    with pytest.raises(UserError, match=r"changes biases \(bias: lora_only\): .*; set replay_loss to cross_entropy"):
        check_distillable(model)


@pytest.mark.parametrize("kind", [SFTModule, DPOModule])
def test_an_unknown_replay_loss_is_refused(tiny_model: Path, kind: Any) -> None:
    with pytest.raises(UserError, match="replay_loss is 'kl'; possible are cross_entropy, distillation"):
        kind(BackboneSettings(str(tiny_model)), replay_loss="kl")


def test_without_an_adapter_nothing_tells_what_was_known(tiny_model: Path) -> None:
    module = SFTModule(BackboneSettings(str(tiny_model), tune="full", dtype="float32"), replay_loss="distillation")
    with pytest.raises(UserError, match=r"distillation asks the model without its adapter: set .*tune to lora, or"):
        module.configure_model()
