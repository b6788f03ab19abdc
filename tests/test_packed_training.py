"""DPO and SFT on packed rows against sequences read one by one: loss, every gradient, and thirty steps."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rerank import DPOModule, SFTModule
from lit_rerank.backbone import BackboneSettings, LoraSettings, trainable_parameters
from lit_rerank.encoding import EncodedWindow
from lit_rerank.modules import RerankModule
from lit_rerank.preferences import Negatives, PreferenceExample
from lit_rerank.reference import AdapterOff, SeparateModel
from tests.encoders import parts, window
from tests.test_modules import logps
from tests.test_scoring import assert_same_gradients, gradients
from tests.tiny import save_tiny_model
from tests.tokenizers import chat_tokenizer

BETA = 0.2
# One token for each digit, and one for each number.
TOKENIZERS = {"splits digits": ("smollm2", "chatml"), "merges digits": ("llama3", "llama3")}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights, over the vocabulary of one kind of tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("llama"), tokenizer=chat_tokenizer(*TOKENIZERS[request.param]))


def moved(module: RerankModule[Any]) -> RerankModule[Any]:
    """Loaded, and no longer where it started: policy and reference differ."""
    torch.manual_seed(1)
    module.configure_model()
    with torch.no_grad():
        for parameter in trainable_parameters(module.model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def backbone(model: Path, tune: str) -> BackboneSettings:
    return BackboneSettings(str(model), tune=tune, lora=LoraSettings(r=2))  # type: ignore[arg-type]


def dpo(model: Path, tune: str, **options: Any) -> DPOModule:
    return moved(DPOModule(backbone(model, tune), SeparateModel(), beta=BETA, **options))  # type: ignore[return-value]


def encode(module: RerankModule[Any], n: int, seed: int = 0) -> EncodedWindow:
    return module.encoder.encode(window(n, random.Random(seed).sample(range(1, n + 1), n)))


def reward(module: DPOModule, state: Sequence[int], tokens: Sequence[int]) -> Tensor:
    policy = logps(module.model, [*state, *tokens], len(state)).sum()
    return BETA * (policy - reference_logp(module, state, tokens))


@torch.no_grad()
def reference_logp(module: DPOModule, state: Sequence[int], tokens: Sequence[int]) -> Tensor:
    if isinstance(module.reference, SeparateModel):
        return logps(module.reference.separate, [*state, *tokens], len(state)).sum()
    assert isinstance(module.reference, AdapterOff)
    with module.model.disable_adapter():  # type: ignore[operator]
        return logps(module.model, [*state, *tokens], len(state)).sum()


def plain_dpo(module: DPOModule, examples: Sequence[PreferenceExample], weigh: bool = False) -> Tensor:
    """The mean over windows, from whole sequences."""
    windows = []
    for example in examples:
        losses = []
        for preference in example.preferences:
            state, chosen, rejected = parts(example, preference)
            others = torch.stack([reward(module, state, tokens) for tokens in rejected])
            losses.append(-(reward(module, state, chosen) - others.logsumexp(0)).sigmoid().log())
        weights = torch.tensor([sum(p.lost) / len(p.lost) if weigh else 1.0 for p in example.preferences])
        windows.append((torch.stack(losses) * weights).sum() / weights.sum())
    return torch.stack(windows).mean()


def as_picked(module: DPOModule, example: PreferenceExample) -> PreferenceExample:
    """What the reference picks: of the identifiers' probabilities, multiplied up token by token among those allowed."""
    if example.pick is None:
        return example
    kept = []
    for preference in example.preferences:
        state, chosen, rejected = parts(example, preference)
        options = [chosen, *rejected]
        following: dict[Sequence[int], Tensor] = {}
        scores = []
        for option in options:
            score = 0.0
            for depth, token in enumerate(option):
                allowed = sorted({other[depth] for other in options if other[:depth] == option[:depth]})
                if len(allowed) > 1 and option[:depth] not in following:
                    with torch.no_grad():
                        whole = module.reference.separate(torch.tensor([[*state, *option[:depth]]])).logits[0, -1]
                    following[option[:depth]] = whole
                if len(allowed) > 1:
                    score += float(following[option[:depth]][allowed].log_softmax(-1)[allowed.index(token)])
            scores.append(score)
        wrong = max(range(1, len(options)), key=scores.__getitem__)
        kept.append((wrong - 1,) if example.pick == "hardest" or scores[wrong] > scores[0] else ())
    return example.narrowed(kept)


def packed_gradients(module: RerankModule[Any], batch: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = module.objective(batch).windows.mean()
    return loss.detach(), gradients(module.model, loss)


def check_equal(
    module: RerankModule[Any], batch: Sequence[Any], expected: Tensor, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """The loss within `rtol` and `atol`, every gradient within ten times `rtol` of its largest component."""
    expected_gradients = gradients(module.model, expected)
    loss, found = packed_gradients(module, batch)
    torch.testing.assert_close(loss, expected.detach(), rtol=rtol, atol=atol)
    assert_same_gradients(expected_gradients, found, rtol=10 * rtol)


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("mode", ["on_policy", "hardest", "sampled:2", "all", "sequence"])
@pytest.mark.parametrize("n", [2, 5, 10, 20])
def test_dpo(n: int, mode: str, tune: str, model: Path) -> None:
    module = dpo(model, tune)
    example = Negatives.parse(mode).example(encode(module, n), module.encoder, random.Random(0))
    picked = as_picked(module, example)
    if not picked.preferences:
        assert (n, mode) == (2, "on_policy")
        assert len(module.objective([example]).windows) == 0
        return
    if mode == "sequence":  # differences of log-probabilities of -3,000: more than float32 knows
        module.model.double()
        module.reference.separate.double()  # type: ignore[attr-defined]
    check_equal(module, [example], plain_dpo(module, [picked]), atol=2e-5 if mode == "sequence" else 1e-6)


@pytest.mark.parametrize("mode", ["all", "hardest"])
def test_windows_that_share_a_row(mode: str, model: Path) -> None:
    module = dpo(model, "lora")
    modes = Negatives.parse(mode)
    batch = [modes.example(encode(module, n), module.encoder, random.Random(0)) for n in (3, 10, 2, 5)]
    check_equal(module, batch, plain_dpo(module, [as_picked(module, example) for example in batch]))


def test_steps_weighed_by_what_they_cost(model: Path) -> None:
    module = dpo(model, "lora", step_weights="ndcg")
    batch = [Negatives("all").example(encode(module, n), module.encoder, random.Random(0)) for n in (3, 6)]
    expected = plain_dpo(module, batch, weigh=True)
    assert not torch.isclose(expected, plain_dpo(module, batch))
    check_equal(module, batch, expected)


# How the weights are kept and read; each beside the same model on whole sequences.
VARIANTS = {
    "4-bit": BackboneSettings("", load_in_4bit=True, dtype="float32", lora=LoraSettings(r=2)),
    "checkpointed": BackboneSettings("", gradient_checkpointing=True, lora=LoraSettings(r=2)),
    "4-bit, checkpointed": BackboneSettings(
        "", load_in_4bit=True, dtype="float32", gradient_checkpointing=True, lora=LoraSettings(r=2)
    ),
}


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_ways_to_keep_the_weights(variant: str, validated: bool, model: Path) -> None:
    module: Any = moved(DPOModule(replace(VARIANTS[variant], model=str(model)), AdapterOff(), beta=BETA))
    example = Negatives("all").example(encode(module, 5), module.encoder, random.Random(0))
    if validated:
        module.eval()
        with torch.no_grad():
            module.objective([example])
    module.train()
    check_equal(module, [example], plain_dpo(module, [example]))


def test_bfloat16_stays_near_float32(model: Path) -> None:
    """bfloat16 has eight bits, 0.4 %: the loss of both ways is within 2 % of float32's, the gradient within 10 %."""
    modules = {
        dtype: moved(
            DPOModule(BackboneSettings(str(model), dtype=dtype, lora=LoraSettings(r=2)), SeparateModel(), beta=BETA)
        )
        for dtype in ("float32", "bfloat16")
    }
    exact: Any = modules["float32"]
    example = Negatives("all").example(encode(exact, 5), exact.encoder, random.Random(0))
    loss, wanted = packed_gradients(exact, [example])
    half: Any = modules["bfloat16"]
    for found, given in (
        packed_gradients(half, [example]),
        ((expected := plain_dpo(half, [example])).detach(), gradients(half.model, expected)),
    ):
        torch.testing.assert_close(found.float(), loss, rtol=2e-2, atol=0)
        difference = torch.cat([(given[name].float() - gradient).flatten() for name, gradient in wanted.items()])
        assert difference.norm() < 0.1 * torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_sft(tune: str, model: Path) -> None:
    module = moved(SFTModule(backbone(model, tune)))
    batch = [encode(module, n) for n in (2, 20, 5, 10)]
    plain = [-logps(module.model, encoded.ids, encoded.prompt_length).mean() for encoded in batch]
    check_equal(module, batch, torch.stack(plain).mean())


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_thirty_steps_follow_one_curve(objective: str, model: Path) -> None:
    module = dpo(model, "lora") if objective == "dpo" else moved(SFTModule(backbone(model, "lora")))
    windows = [encode(module, n, seed) for seed in range(3) for n in (3, 5)] * 10
    examples = [Negatives("all").example(encoded, module.encoder, random.Random(0)) for encoded in windows]

    def packed(step: int) -> Tensor:
        batch: Any = windows if objective == "sft" else examples
        return module.objective(batch[2 * step : 2 * step + 2]).windows.mean()

    def plain(step: int) -> Tensor:
        if objective == "dpo":
            return plain_dpo(module, examples[2 * step : 2 * step + 2])  # type: ignore[arg-type]
        batch = windows[2 * step : 2 * step + 2]
        return torch.stack([-logps(module.model, e.ids, e.prompt_length).mean() for e in batch]).mean()

    start = copy.deepcopy(module.model.state_dict())
    curves = []
    for loss in (packed, plain):
        module.model.load_state_dict(start)
        curves.append(descend(module, loss))
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-4)
    assert curves[0][-5:].mean() < curves[0][:5].mean()


def descend(module: RerankModule[Any], loss: Callable[[int], Tensor]) -> Tensor:
    optimizer = torch.optim.AdamW(trainable_parameters(module.model).values(), 3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)
