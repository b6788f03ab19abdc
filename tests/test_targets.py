"""Objectives of whole batches against twins that read one sequence at a time, in plain loops."""

import math
import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_modules.records import Window
from lit_rerank.backbone import load_model
from lit_rerank.chat import Ids
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.losses import dpo_loss, segment_mean
from lit_rerank.preferences import Negatives, PreferenceExample
from lit_rerank.scoring import token_logps
from lit_rerank.targets import PreferenceTargets, SFTTargets
from tests.encoders import parts
from tests.test_scoring import assert_same_gradients, gradients
from tests.tiny import record, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load_model(str(tiny_model), trainable=True)


@pytest.fixture(scope="module", params=["chain", "direct"])
def encoder(request: pytest.FixtureRequest) -> WindowEncoder:
    return WindowEncoder(tiny_tokenizer(), PromptSettings(format=request.param))


def encode(encoder: WindowEncoder, n: int, choices: int | None = None, qid: str = "q1") -> EncodedWindow:
    permutation = tuple(random.Random(n).sample(range(1, n + 1), n))
    return encoder.encode(Window.of(record(qid, n, permutation), range(n)), choices)


def example(encoder: WindowEncoder, negatives: str, n: int, **options: int | str) -> PreferenceExample:
    return Negatives.parse(negatives).example(encode(encoder, n, **options), encoder, random.Random(0))


# -- SFT ----------------------------------------------------------------------------------------------------------


def remaining_ids(encoder: WindowEncoder, encoded: EncodedWindow, rank: int) -> list[Ids]:
    """The tokens of all identifiers that may be chosen at a rank."""
    last = rank == len(encoded.choices) - 1
    return [encoder.identifier_ids(i, last) for i in encoded.window.permutation[rank:]]


def sft_twin(
    model: PreTrainedModel,
    encoder: WindowEncoder,
    encoded: EncodedWindow,
    weight: float,
    remaining_weight: float,
    normalise: bool,
) -> SimpleNamespace:
    """The figures of one window."""
    whole = model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    total, weights, rest, remaining, choice, choice_nll, right = 0.0, 0.0, [], [], [], [], []
    position = encoded.prompt_length
    while position < len(encoded.ids):
        rank = next((r for r, c in enumerate(encoded.choices) if c.start <= position < c.end), None)
        if rank is None:
            nll = -whole[position - 1, encoded.ids[position]]
            total, weights = total + nll, weights + 1
            rest.append(nll)
            position += 1
            continue
        tokens, others = encoded.ids[encoded.choices[rank].start : encoded.choices[rank].end], None
        position += len(tokens)
        if rank >= encoded.supervised:
            for depth in range(len(tokens)):
                place = whole[encoded.choices[rank].start + depth - 1]
                allowed = {o[depth] for o in remaining_ids(encoder, encoded, rank) if o[:depth] == tokens[:depth]}
                remaining.append(-sum(math.e ** place[token] for token in allowed).log())
                total, weights = total + remaining_weight * remaining[-1], weights + remaining_weight
            continue
        nlls, restricted, likeliest = [], [], True
        for depth, token in enumerate(tokens):
            place = whole[encoded.choices[rank].start + depth - 1]
            others = {o[depth] for o in remaining_ids(encoder, encoded, rank) if o[:depth] == tokens[:depth]} - {token}
            among = math.e ** place[token] + sum(math.e ** place[other] for other in others)
            nlls.append(-place[token])
            restricted.append(among.log() - place[token])
            likeliest = likeliest and all(place[token] > place[other] for other in others)
        total = total + weight * sum(restricted if normalise else nlls)
        weights += weight * len(tokens)
        choice.append(sum(restricted))
        choice_nll.append(sum(nlls))
        right.append(float(likeliest))

    def mean(values: list[Tensor]) -> Tensor:
        return torch.as_tensor(sum(values) / len(values))

    n = len(encoded.window)
    return SimpleNamespace(
        window=total / weights,
        choice=mean(choice),
        choice_nll=mean(choice_nll),
        remaining=mean(remaining) if remaining else None,
        rest=mean(rest),
        accuracy=mean(right),
        no_skill=sum(math.log(n - k) for k in range(encoded.supervised)) / encoded.supervised,
    )


@pytest.mark.parametrize(
    ("weight", "remaining_weight", "normalise"),
    [(1.0, 1.0, False), (3.0, 1.0, False), (1.0, 7.0, True), (0.5, 0.0, True), (0.0, 2.0, False)],
)
def test_sft_is_its_twin(
    weight: float, remaining_weight: float, normalise: bool, model: PreTrainedModel, encoder: WindowEncoder
) -> None:
    sizes = [(12, None), (1, None), (12, 3), (5, 1), (2, None), (4, 9), (11, 10)]
    batch = [encode(encoder, n, k, qid=f"query{n}") for n, k in sizes]
    targets = SFTTargets.build(batch)
    loss = targets.loss(token_logps(model, targets.packed), weight, remaining_weight, normalise)
    twins = [sft_twin(model, encoder, encoded, weight, remaining_weight, normalise) for encoded in batch]
    expected = torch.stack([twin.window for twin in twins])
    torch.testing.assert_close(loss.windows, expected, atol=1e-5, rtol=1e-4)
    for name in ("choice", "choice_nll", "remaining", "rest", "accuracy"):
        mean = torch.stack([value for twin in twins if (value := getattr(twin, name)) is not None]).mean()
        torch.testing.assert_close(getattr(loss, name), mean, atol=1e-5, rtol=1e-4)
        assert not getattr(loss, name).requires_grad
    assert targets.no_skill == pytest.approx(sum(twin.no_skill for twin in twins) / len(twins))
    assert_same_gradients(gradients(model, expected.sum()), gradients(model, loss.windows.sum()))


def test_the_batch_needs_multi_token_identifiers(encoder: WindowEncoder) -> None:
    """Otherwise the tests here would prove less than they seem to."""
    assert encoder.identifier_ids(1)[0] == encoder.identifier_ids(12)[0]
    assert len(encoder.identifier_ids(12)) == 3


@pytest.mark.parametrize("n", [2, 5, 9])
def test_a_model_without_skill_loses_ln_n_factorial_over_n(n: int, tiny_model: Path, encoder: WindowEncoder) -> None:
    """Up to 9, an identifier is told by its first token alone."""
    blank = load_model(str(tiny_model))
    for parameter in blank.parameters():
        torch.nn.init.zeros_(parameter)
    targets = SFTTargets.build([encode(encoder, n)])
    loss = targets.loss(token_logps(blank, targets.packed), normalise=True)
    assert float(loss.choice) == pytest.approx(math.log(math.factorial(n)) / n, rel=1e-5)
    assert targets.no_skill == pytest.approx(math.log(math.factorial(n)) / n)
    assert float(loss.accuracy) == pytest.approx(1 / n)  # a tie is no hit; the last choice has no alternative


def test_sft_windows_do_not_depend_on_their_batch(model: PreTrainedModel, encoder: WindowEncoder) -> None:
    batch = [encode(encoder, n) for n in (3, 8, 5)]

    def windows(*chosen: EncodedWindow) -> Tensor:
        targets = SFTTargets.build(chosen)
        return targets.loss(token_logps(model, targets.packed), 2.0, 3.0, normalise=True).windows

    torch.testing.assert_close(windows(*batch), torch.cat([windows(encoded) for encoded in batch]))


# -- preferences --------------------------------------------------------------------------------------------------


def completion_twin(model: PreTrainedModel, state: Ids, tokens: Ids) -> Tensor:
    """log p(tokens | state), from a sequence of its own."""
    logps = model(torch.tensor([state + tokens])).logits[0].log_softmax(-1)
    return sum(logps[len(state) + i - 1, token] for i, token in enumerate(tokens))


@pytest.mark.parametrize("mode", ["all", "sampled:2", "sequence"])
def test_preferences_are_their_twin(mode: str, model: PreTrainedModel, encoder: WindowEncoder) -> None:
    batch = [
        example(encoder, mode, n=3),
        PreferenceExample("nothing", (5, 6), ()),
        example(encoder, mode, n=10, qid="another"),
        example(encoder, mode, n=1),
        example(encoder, mode, n=5, choices=2),
    ]
    targets = PreferenceTargets.build(batch)
    chosen, rejected = targets.completion_logps(token_logps(model, targets.packed))
    asked = [parts(e, preference) for e in batch for preference in e.preferences]
    twins = [[completion_twin(model, state, ids) for ids in (right, *wrong)] for state, right, wrong in asked]
    torch.testing.assert_close(chosen, torch.stack([twin[0] for twin in twins]), atol=1e-4, rtol=1e-4)
    for row, (_, *twin) in zip(rejected, twins, strict=True):
        torch.testing.assert_close(row[: len(twin)], torch.stack(twin), atol=1e-4, rtol=1e-4)
        assert row[len(twin) :].isneginf().all()
    assert targets.windows == 3
    assert targets.window.tolist() == [number for number, i in enumerate((0, 2, 4)) for _ in batch[i].preferences]
    assert targets.step.tolist() == [p.step for e in batch for p in e.preferences]
    assert targets.length[targets.chosen].tolist() == [len(right) for _, right, _ in asked]
    lost = [sum(p.lost) / len(p.lost) for e in batch for p in e.preferences]
    assert targets.lost.tolist() == pytest.approx(lost)

    def reference(logps: Tensor) -> Tensor:
        return (0.7 * logps - 0.1).detach()

    losses, *_ = dpo_loss(chosen, rejected, reference(chosen), reference(rejected), beta=0.3)
    expected = [
        dpo_loss(*values, *map(reference, values), beta=0.3)[0].squeeze()
        for values in ((twin[0], torch.stack(twin[1:])[None]) for twin in twins)
    ]
    mean = segment_mean(losses, targets.window, targets.windows).sum()
    twin_mean = sum(
        torch.stack([e for e, w in zip(expected, targets.window, strict=True) if w == i]).mean() for i in range(3)
    )
    torch.testing.assert_close(mean, twin_mean, atol=1e-5, rtol=1e-4)
    assert_same_gradients(gradients(model, twin_mean), gradients(model, mean))


def test_ready_made_pairs(model: PreTrainedModel, encoder: WindowEncoder) -> None:
    state, chosen, rejected = encoder.encode_pair("Is it so? ", "Yes, it is.", "Yes, but no.")
    targets = PreferenceTargets.build([PreferenceExample.pair("0", state, chosen, rejected)])
    found = targets.completion_logps(token_logps(model, targets.packed))
    expected = completion_twin(model, state, chosen), completion_twin(model, state, rejected)
    torch.testing.assert_close((found[0][0], found[1][0, 0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [[], [PreferenceExample("nothing", (5, 6), ())]])
def test_no_preferences_make_no_targets(batch: list[PreferenceExample]) -> None:
    assert PreferenceTargets.build(batch) is None


def test_a_wrong_identifier_is_one_more_token(encoder: WindowEncoder) -> None:
    """Below 10, that is: its `]` is asked about, not read."""
    encoded = encode(encoder, n=9)
    targets = PreferenceTargets.build([example(encoder, "sampled:1", n=9)])
    assert len(targets.packed) == encoded.choices[-2].start + 1 + 8


def test_listwise_dpo_beside_a_uniform_reference_is_the_cross_entropy_of_the_choice(
    model: PreTrainedModel, encoder: WindowEncoder
) -> None:
    """With beta 1: of each step's identifiers, whole ones, renormalised over those that remain."""
    listwise = example(encoder, "all", n=12)
    targets = PreferenceTargets.build([listwise])
    with torch.no_grad():
        chosen, rejected = targets.completion_logps(token_logps(model, targets.packed))
        losses, _, _ = dpo_loss(
            chosen, rejected, torch.zeros(11), torch.where(rejected.isneginf(), rejected, 0.0), beta=1.0
        )
        for loss, preference in zip(losses, listwise.preferences, strict=True):
            state, right, wrong = parts(listwise, preference)
            sums = torch.stack([completion_twin(model, state, ids) for ids in (right, *wrong)])
            torch.testing.assert_close(loss, -sums.log_softmax(0)[0], atol=1e-4, rtol=1e-4)


# -- the model's own choice ---------------------------------------------------------------------------------------


def choice_twin(model: PreTrainedModel, state: Ids, options: Sequence[Ids]) -> list[float]:
    """Each candidate's probability, multiplied up along the trie of the candidates' tokens."""
    following: dict[Ids, Tensor] = {}
    probabilities = []
    for option in options:
        probability = 1.0
        for depth, token in enumerate(option):
            context = state + option[:depth]
            if context not in following:
                following[context] = model(torch.tensor([context])).logits[0, -1].softmax(-1)
            branches = {other[depth] for other in options if other[:depth] == option[:depth]}
            probability *= float(following[context][token] / sum(following[context][branch] for branch in branches))
        probabilities.append(probability)
    return probabilities


@pytest.fixture(scope="module")
def choices(model: PreTrainedModel, encoder: WindowEncoder) -> SimpleNamespace:
    """A batch with what the model answers to it, and the twins' probabilities of each preference's candidates."""
    batch = [
        example(encoder, "on_policy", n=12),
        example(encoder, "all", n=3),
        example(encoder, "hardest", n=4),
        example(encoder, "on_policy", n=2),
        PreferenceExample("nothing", (5, 6), ()),
    ]
    with torch.no_grad():
        targets = PreferenceTargets.build(batch)
        logps = token_logps(model, targets.packed)
        asked = [[parts(e, p) for p in e.preferences] for e in batch]
        twins = [[choice_twin(model, state, (right, *wrong)) for state, right, wrong in e] for e in asked]
    return SimpleNamespace(model=model, batch=batch, targets=targets, logps=logps, twins=twins)


def test_scores_are_probabilities_among_what_remains(choices: SimpleNamespace) -> None:
    answers = choices.logps.tolist()
    found = [[options.logps(answers) for options in asked] for asked in choices.targets.choices]
    assert [[len(p) for p in e] for e in found] == [[12 - s for s in range(11)], [], [4, 3, 2], [2]]
    twins = [twin for e, twin in zip(choices.batch, choices.twins, strict=True) if e.pick]
    for scores, twin in zip(chain.from_iterable(found), chain.from_iterable(twins), strict=True):
        assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-5)
        assert [math.exp(score) for score in scores] == pytest.approx(twin, abs=1e-5)


def test_picked_are_the_references_own_choices(choices: SimpleNamespace) -> None:
    """And the answers that it gave on the way are those to the picked ones, as if these alone had been asked about."""
    expected, own_choices = [], []
    for e, twins in zip(choices.batch, choices.twins, strict=True):
        kept = []
        for twin in twins:
            own = max(range(len(twin)), key=twin.__getitem__)
            wrong = max(range(1, len(twin)), key=twin.__getitem__) - 1
            if e.pick == "on_policy":
                own_choices.append(own)
            kept.append({None: tuple(range(len(twin) - 1)), "hardest": (wrong,)}.get(e.pick, (own - 1,) if own else ()))
        expected.append(e.narrowed(kept))
    assert 0 in own_choices
    assert any(own_choices)
    targets, answers = choices.targets.picked(choices.logps)
    assert [e.preferences for e in targets.examples] == [e.preferences for e in expected if e.preferences]
    assert not any(targets.choices)
    asked = [parts(e, p) for e in expected for p in e.preferences]
    with torch.no_grad():
        for (state, right, wrong), chosen, rejected in zip(asked, *answers, strict=True):
            twin = torch.stack([completion_twin(choices.model, state, ids) for ids in (right, *wrong)])
            torch.testing.assert_close(torch.cat((chosen[None], rejected[: len(wrong)])), twin, atol=1e-4, rtol=1e-4)
            assert rejected[len(wrong) :].isneginf().all()


def test_nothing_may_be_picked(encoder: WindowEncoder) -> None:
    targets = PreferenceTargets.build([example(encoder, "on_policy", n=5)])
    likeliest = torch.zeros(len(targets.packed.place))
    for options in targets.choices[0]:
        teachers = options.options[0]
        for depth, token in enumerate(teachers):
            if teachers[:depth] in options.branchings:
                likeliest[options.branchings[teachers[:depth]][token]] = 9.0
    assert targets.picked(likeliest) is None
