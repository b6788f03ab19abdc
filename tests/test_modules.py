"""What a training step learns from, against a plain twin: one window at a time, no batches, no Lightning."""

import copy
import math
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.records import Window
from lit_rerank import DPOModule, SFTModule
from lit_rerank.as_trained import save_settings
from lit_rerank.backbone import BackboneSettings, load_tokenizer, trainable_parameters
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.json_lines import JsonLinesLogger
from lit_rerank.modules import RerankModule
from lit_rerank.preferences import Negatives, PreferenceExample
from lit_rerank.reading import SlidingWindow
from lit_rerank.reference import AdapterOff
from lit_rerank.settings import OptimizerSettings
from lit_rerank.targets import PreferenceTargets
from tests.encoders import parts
from tests.tiny import record
from tests.training import figures

BETA = 0.3


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> WindowEncoder:
    return WindowEncoder(load_tokenizer(str(tiny_model)), PromptSettings())


@pytest.fixture(scope="module")
def windows(encoder: WindowEncoder) -> list[EncodedWindow]:
    """Eleven windows of 2 to 4 passages."""
    records = [record(f"q{i}", 2 + i % 3) for i in range(11)]
    return [encoder.encode(Window.of(r, range(len(r.passages)))) for r in records]


@pytest.fixture
def preferences(encoder: WindowEncoder, windows: list[EncodedWindow]) -> Callable[[str], list[PreferenceExample]]:
    return lambda mode: [Negatives.parse(mode).example(w, encoder, random.Random(0)) for w in windows]


def sft(tiny_model: Path, **options: Any) -> SFTModule:
    module = SFTModule(BackboneSettings(str(tiny_model), tune="full", dtype="float32"), **options)
    module.configure_model()
    return module


def dpo(tiny_model: Path) -> DPOModule:
    """Its adapter has learnt something already: policy and reference differ."""
    torch.manual_seed(0)
    module = DPOModule(BackboneSettings(str(tiny_model), dtype="float32"), AdapterOff(), beta=BETA)
    module.configure_model()
    with torch.no_grad():
        for parameter in trainable_parameters(module).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def descend(
    module: RerankModule[Any], run: Path, batches: Sequence[Sequence[Any]], **options: Any
) -> dict[int, dict[str, float]]:
    """Train for an epoch with plain gradient descent of rate 1, which, unlike Adam, shows the gradient's scale."""
    module.configure_optimizers = lambda: torch.optim.SGD(trainable_parameters(module).values(), 1.0)  # type: ignore
    fit(module, run, batches, max_epochs=1, **options)
    return figures(run)


def fit(module: RerankModule[Any], run: Path, batches: Sequence[Sequence[Any]], **options: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=JsonLinesLogger(str(run)),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(list(batches), batch_size=None))  # type: ignore[arg-type]


def cut(examples: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def twin_descends(twin: torch.nn.Module, losses: Sequence[Callable[[], Tensor]], clip: float = math.inf) -> list[float]:
    values = []
    for loss in losses:
        twin.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            parameters = trainable_parameters(twin).values()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            for parameter in parameters:
                parameter -= parameter.grad  # type: ignore[operator]
        values.append(value.item())
    return values


def logps(model: torch.nn.Module, ids: Sequence[int], start: int) -> Tensor:
    """Log-probabilities of ids[start:]."""
    answers = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
    return answers.gather(1, torch.tensor(ids[start:])[:, None])[:, 0]


def sft_loss(model: torch.nn.Module, windows: Sequence[EncodedWindow]) -> Tensor:
    return torch.stack([-logps(model, w.ids, w.prompt_length).mean() for w in windows]).mean()


def dpo_loss(model: Any, examples: Sequence[PreferenceExample]) -> Tensor:
    def reward(state: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
        policy = logps(model, state + answer, len(state)).sum()
        with torch.no_grad(), model.disable_adapter():
            reference = logps(model, state + answer, len(state)).sum()
        return BETA * (policy - reference)

    losses = []
    for example in examples:
        margins = []
        for state, chosen, rejected in (parts(example, p) for p in example.preferences):
            margins.append(reward(state, chosen) - torch.stack([reward(state, r) for r in rejected]).logsumexp(0))
        if margins:
            losses.append(-torch.stack(margins).sigmoid().log().mean())
    return torch.stack(losses).mean()


def check_equal(module: RerankModule[Any], twin: torch.nn.Module, before: dict[str, Tensor]) -> None:
    """Parameters agree to 1 % of what was learnt and 1e-5: float32, added up in another order."""
    after, expected = trainable_parameters(module.model), trainable_parameters(twin)
    for name, start in before.items():
        torch.testing.assert_close(after[name] - start, expected[name] - start, atol=1e-5, rtol=1e-2)
    assert max((after[name] - start).abs().max() for name, start in before.items()) > 1e-2


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


SHAPES = [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)]  # windows in a batch, batches in a step


@pytest.mark.parametrize(("size", "accumulate"), SHAPES)
def test_sft_learns_from_the_mean_over_a_steps_windows(
    tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow], size: int, accumulate: int
) -> None:
    module = sft(tiny_model)
    twin, before = copy.deepcopy(module.model), snapshot(module.model)
    steps = cut(windows, size * accumulate)  # of the 11 windows, 2 or 3 are left for the last step
    assert len(steps[-1]) in (2, 3)
    expected = twin_descends(twin, [partial(sft_loss, twin, step) for step in steps])
    logged = descend(module, tmp_path, cut(windows, size), accumulate_grad_batches=accumulate)
    check_equal(module, twin, before)
    assert [logged[i]["train/loss"] for i in (1, 2)] == pytest.approx(expected, rel=1e-4)


def as_picked(module: DPOModule, example: PreferenceExample) -> PreferenceExample:
    targets = PreferenceTargets.build([example])
    found = targets and targets.picked(module.reference.token_logps(targets.packed))
    return found[0].examples[0] if found else PreferenceExample(example.qid, example.ids, ())


@pytest.mark.parametrize("negatives", ["all", "on_policy"])
@pytest.mark.parametrize(("size", "accumulate"), SHAPES)
def test_dpo_learns_from_the_mean_over_the_windows_that_have_preferences(
    tiny_model: Path,
    tmp_path: Path,
    preferences: Callable[[str], list[PreferenceExample]],
    negatives: str,
    size: int,
    accumulate: int,
) -> None:
    module = dpo(tiny_model)
    twin, before = copy.deepcopy(module.model), snapshot(module.model)
    examples = preferences(negatives)
    picked = [as_picked(module, example) for example in examples]  # the reference does not change
    without = [not example.preferences for example in picked]
    assert any(without) == (negatives == "on_policy")
    assert not all(without)
    steps = cut(picked, size * accumulate)
    expected = twin_descends(twin, [partial(dpo_loss, twin, step) for step in steps])
    logged = descend(module, tmp_path, cut(examples, size), accumulate_grad_batches=accumulate)
    check_equal(module, twin, before)
    assert [logged[i]["train/loss"] for i in (1, 2)] == pytest.approx(expected, rel=1e-4)
    count = [sum(len(example.preferences) for example in step) / len(step) for step in steps]
    assert [logged[i]["train/preferences"] for i in (1, 2)] == pytest.approx(count)


def test_a_step_without_any_preference_learns_nothing(tiny_model: Path, tmp_path: Path) -> None:
    module = dpo(tiny_model)
    before = snapshot(module.model)
    logged = descend(module, tmp_path, [[PreferenceExample("q", (5, 6), ())], [PreferenceExample("r", (5, 6), ())]])
    for name, value in trainable_parameters(module.model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert logged == {step: {"train/preferences": 0.0} for step in (1, 2)}


def test_a_step_without_any_preference_leaves_momentum_and_weight_decay_alone(
    tiny_model: Path, tmp_path: Path, preferences: Callable[[str], list[PreferenceExample]]
) -> None:
    def after(batches: Sequence[Sequence[PreferenceExample]]) -> dict[str, Tensor]:
        module = dpo(tiny_model)
        parameters = trainable_parameters(module).values()
        module.configure_optimizers = lambda: torch.optim.AdamW(parameters, 0.1, weight_decay=0.1)  # type: ignore
        fit(module, tmp_path, batches, max_epochs=1)
        return snapshot(module.model)

    learned = after([preferences("all")[:2]])
    for name, value in after([preferences("all")[:2], [PreferenceExample("q", (5, 6), ())]]).items():
        torch.testing.assert_close(value, learned[name], rtol=0, atol=0)


def test_clipping_acts_on_the_mean(tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow]) -> None:
    module = sft(tiny_model)
    twin, before = copy.deepcopy(module.model), snapshot(module.model)
    sft_loss(twin, windows[:8]).backward()  # type: ignore[no-untyped-call]
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))  # type: ignore[union-attr]
    for share, name in ((0.5, "clipped"), (1.5, "whole")):
        again, other = sft(tiny_model), copy.deepcopy(module.model)
        twin_descends(other, [partial(sft_loss, other, windows[:8])], clip=share * norm)
        batches = cut(windows[:8], 2)
        descend(again, tmp_path / name, batches, accumulate_grad_batches=4, gradient_clip_val=share * norm)
        check_equal(again, other, before)
        moved = math.sqrt(sum(float((p - before[n]).square().sum()) for n, p in snapshot(again.model).items()))
        assert moved == pytest.approx(min(share, 1.0) * norm, rel=1e-4)


def test_figures_of_dpo_are_those_of_the_batch(
    tiny_model: Path, tmp_path: Path, preferences: Callable[[str], list[PreferenceExample]]
) -> None:
    module = dpo(tiny_model)
    examples = preferences("all")
    by_step: dict[int, list[float]] = {}
    margins = []
    for example in examples:
        own = []
        for p in example.preferences:
            state, *answers = parts(example, p)[0], parts(example, p)[1], *p.rejected
            with torch.no_grad():
                policy = [logps(module.model, state + r, len(state)).sum() for r in answers]
                with module.model.disable_adapter():
                    reference = [logps(module.model, state + r, len(state)).sum() for r in answers]
            chosen, *rejected = [BETA * float(a - b) for a, b in zip(policy, reference, strict=True)]
            own.append(chosen - max(rejected))
            by_step.setdefault(p.step, []).append(chosen - max(rejected))
        margins.append(sum(own) / len(own))
    logged = descend(module, tmp_path, cut(examples, 3), accumulate_grad_batches=4)[1]
    assert logged["train/rewards/margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert logged["train/rewards/margin"] == pytest.approx(
        logged["train/rewards/chosen"] - logged["train/rewards/rejected"], abs=1e-5
    )
    assert set(by_step) == {1, 2, 3}
    for step, own in by_step.items():
        assert logged[f"train/accuracy_by_step/{step:02d}"] == pytest.approx(sum(m > 0 for m in own) / len(own))
        assert logged[f"train/margin_by_step/{step:02d}"] == pytest.approx(sum(own) / len(own), abs=1e-4)
        chosen, rejected = (logged[f"train/{name}_by_step/{step:02d}"] for name in ("chosen", "rejected"))
        assert chosen - rejected == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_figures_of_sft_are_means_over_the_step(tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow]) -> None:
    whole = descend(sft(tiny_model), tmp_path / "whole", cut(windows, 11))[1]
    split = descend(sft(tiny_model), tmp_path / "split", cut(windows, 2), accumulate_grad_batches=6)[1]
    names = ("loss", "choice_loss", "choice_nll", "rest_loss", "choice_accuracy", "no_skill")
    assert set(whole) == set(split) == {f"train/{name}" for name in names}
    assert split == pytest.approx(whole, rel=1e-4)
    # of n passages, guessing costs log(n!) / n per choice
    no_skill = [math.lgamma(len(w.window) + 1) / len(w.window) for w in windows]
    assert whole["train/no_skill"] == pytest.approx(sum(no_skill) / len(no_skill))


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_a_batch_can_be_learnt_by_heart(
    tiny_model: Path,
    tmp_path: Path,
    windows: list[EncodedWindow],
    preferences: Callable[[str], list[PreferenceExample]],
    task: str,
) -> None:
    module: RerankModule[Any] = sft(tiny_model) if task == "sft" else dpo(tiny_model)
    module.optimizer = OptimizerSettings(lr=5e-3)
    batch = windows[:4] if task == "sft" else preferences("all")[:4]
    fit(module, tmp_path, [batch] * 30, max_epochs=1)
    steps = figures(tmp_path)
    assert steps[30]["train/loss"] < 0.2 * steps[1]["train/loss"]
    if task == "sft":
        assert steps[30]["train/choice_loss"] < 0.5 * steps[30]["train/no_skill"]
    else:
        assert steps[30]["train/rewards/accuracy"] == 1.0


class LearningRates(L.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_zero_grad(self, trainer: L.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 2},
        {"max_epochs": 2, "max_steps": 99},
        {"max_epochs": 9, "max_steps": 12},
        {"max_epochs": -1, "max_steps": 12},
    ],
)
def test_the_learning_rate_warms_up_and_falls_along_a_cosine(
    tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow], limits: dict[str, int]
) -> None:
    module = sft(tiny_model, optimizer=OptimizerSettings(lr=1e-3, warmup=0.25))
    seen = LearningRates()
    fit(module, tmp_path, cut(windows, 1), accumulate_grad_batches=2, callbacks=[seen], **limits)  # 6 steps an epoch
    rates = list(dict.fromkeys(seen.rates))
    expected = [1e-3 * (i / 3 if i < 3 else 0.5 * (1 + math.cos(math.pi * (i - 3) / 9))) for i in range(12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", [1.0, 1.0, 1.0]), ("linear", [1.0, 2 / 3, 1 / 3])])
def test_other_schedules(
    tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow], schedule: Any, expected: list[float]
) -> None:
    module = sft(tiny_model, optimizer=OptimizerSettings(lr=1e-3, warmup=0.25, schedule=schedule))
    seen = LearningRates()
    fit(module, tmp_path, cut(windows, 3), max_epochs=-1, max_steps=4, callbacks=[seen])
    assert seen.rates == pytest.approx([0.0, *(1e-3 * share for share in expected)])


def test_training_without_end_is_refused(tiny_model: Path, tmp_path: Path, windows: list[EncodedWindow]) -> None:
    with pytest.raises(UserError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        fit(sft(tiny_model), tmp_path, cut(windows, 1), max_epochs=-1, max_steps=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing has no meaning for the loss 'ipo'"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DPOModule(BackboneSettings("any"), **options)


def test_the_frozen_adapter_needs_an_adapter(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="FrozenAdapter needs an adapter"):
        DPOModule(BackboneSettings(str(tiny_model))).configure_model()


def test_an_adapter_goes_on_with_the_prompt_it_knows(tiny_model: Path, tmp_path: Path) -> None:
    save_settings(PromptSettings(), SlidingWindow(), tmp_path)
    adapter, whole = (
        BackboneSettings(str(tiny_model), adapter=str(tmp_path)),
        BackboneSettings(str(tmp_path), tune="full"),
    )
    repeated, direct = PromptSettings(repeat_identifier=True), PromptSettings(format="direct")
    for module in (
        SFTModule(adapter, repeated),
        SFTModule(whole, repeated),
        DPOModule(adapter, prompt=repeated, reference=AdapterOff()),
    ):
        with pytest.raises(UserError, match="trained with repeat_identifier False"):
            module.configure_model()
    with pytest.raises(UserError, match="trained with format chain"):
        DPOModule(adapter, prompt=direct, reference=AdapterOff()).configure_model()


def test_sft_may_teach_another_format(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    save_settings(PromptSettings(format="direct"), SlidingWindow(), tmp_path)
    module = SFTModule(BackboneSettings(str(tmp_path), tune="full"), PromptSettings())
    with pytest.warns(UserWarning, match=f"{tmp_path} was trained with format direct: this run teaches it chain"):
        module.configure_model()
    assert module.encoder.settings.format == "chain"
