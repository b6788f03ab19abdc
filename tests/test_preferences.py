"""Which preferences a window gives, read back as text."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from data_modules.records import Window
from data_modules.windows import generator
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.preferences import Negatives, Preference, PreferenceExample, ndcg_lost, picked
from tests.encoders import parts
from tests.tiny import record, tiny_tokenizer

PERMUTATION = (3, 1, 12, 2, 5, 4, 11, 7, 6, 10, 9, 8)


@pytest.fixture(scope="module", params=["chain", "direct"])
def encoder(request: pytest.FixtureRequest) -> WindowEncoder:
    return WindowEncoder(tiny_tokenizer(), PromptSettings(format=request.param))


@pytest.fixture
def chain() -> WindowEncoder:
    return WindowEncoder(tiny_tokenizer(), PromptSettings())


def encode(encoder: WindowEncoder, n: int, choices: int | None = None) -> EncodedWindow:
    permutation = tuple(i for i in PERMUTATION if i <= n)
    return encoder.encode(Window.of(record(n=n, permutation=permutation), range(n)), choices)


def example(
    encoder: WindowEncoder, negatives: str, n: int, choices: int | None = None, draw: random.Random | None = None
) -> PreferenceExample:
    return Negatives.parse(negatives).example(encode(encoder, n, choices), encoder, draw or random.Random(0))


def text(encoder: WindowEncoder, ids: tuple[int, ...]) -> str:
    return encoder.chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def identifiers(encoder: WindowEncoder, example: PreferenceExample, preference: Preference) -> tuple[int, set[int]]:
    """The chosen identifier and the rejected ones."""
    _, right, wrong = parts(example, preference)
    chosen, *rejected = (int(text(encoder, ids).partition("]")[0]) for ids in (right, *wrong))
    assert len(set(rejected)) == len(rejected)
    return chosen, set(rejected)


@pytest.mark.parametrize(
    ("name", "states"),
    [
        (
            "chain",
            ["Step 1: [", "Step 1: [3]\nStep 2: [3] > [", "Step 1: [3]\nStep 2: [3] > [1]\nStep 3: [3] > [1] > ["],
        ),
        ("direct", ["[", "[3] > [", "[3] > [1] > ["]),
    ],
)
def test_states_and_completions_as_text(name: str, states: list[str]) -> None:
    encoder = WindowEncoder(tiny_tokenizer(), PromptSettings(format=name))
    window = encode(encoder, n=4).window  # the teacher's order is 3, 1, 2, 4
    whole = example(encoder, "all", n=4)
    found = whole.preferences
    assert [text(encoder, parts(whole, p)[0]) for p in found] == [encoder.prompt(window) + state for state in states]
    assert [identifiers(encoder, whole, p) for p in found] == [(3, {1, 2, 4}), (1, {2, 4}), (2, {4})]
    assert [p.step for p in found] == [1, 2, 3]


def test_completions_are_tokenised_in_place(encoder: WindowEncoder) -> None:
    """What a preference holds are the very tokens of the texts in which the identifier stands there."""
    encoded = encode(encoder, n=12)
    permutation = encoded.window.permutation
    found = example(encoder, "all", n=12)
    for preference in found.preferences:
        chosen_before = permutation[: preference.step - 1]
        state, chosen, rejected = parts(found, preference)
        for tokens in (chosen, *rejected):
            identifier = int(text(encoder, tokens).partition("]")[0])
            rest = [i for i in permutation if i not in (*chosen_before, identifier)]
            whole = encoder.encode(Window.of(record(n=12, permutation=(*chosen_before, identifier, *rest)), range(12)))
            assert whole.ids[: len(state) + len(tokens)] == state + tokens
            assert text(encoder, tokens[:-1]).count("]") == 0  # it ends with the token that ends the identifier


@pytest.mark.parametrize("mode", ["on_policy", "hardest", "all", "sampled:2"])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_a_window_of_n_gives_n_minus_one(mode: str, n: int, encoder: WindowEncoder) -> None:
    found = example(encoder, mode, n)
    assert len(found.preferences) == n - 1
    assert found.pick == (mode if mode in ("on_policy", "hardest") else None)
    for step, preference in enumerate(found.preferences):
        remaining = [i for i in PERMUTATION if i <= n][step:]
        chosen, rejected = identifiers(encoder, found, preference)
        assert chosen == remaining[0]
        if mode == "sampled:2":
            assert rejected < set(remaining)
            assert chosen not in rejected
            assert len(rejected) == min(2, len(remaining) - 1)
        else:
            assert rejected == set(remaining[1:])


@pytest.mark.parametrize(("choices", "steps"), [(1, 1), (3, 3), (4, 4), (5, 4), (9, 4)])
def test_only_trusted_choices_become_preferences(choices: int, steps: int, encoder: WindowEncoder) -> None:
    found = example(encoder, "all", n=5, choices=choices)
    assert [p.step for p in found.preferences] == list(range(1, steps + 1))
    assert identifiers(encoder, found, found.preferences[0]) == (3, {1, 2, 5, 4})  # the untrusted are still wrong ones


@pytest.mark.parametrize("mode", ["sampled:3", "sequence"])
def test_draws_depend_on_seed_epoch_and_index_alone(mode: str, chain: WindowEncoder) -> None:
    def drawn(*key: int) -> PreferenceExample:
        return example(chain, mode, n=12, draw=generator(*key))

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    assert len({drawn(*key).preferences for key in [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)]}) == 4


def test_sampled_negatives_are_uniform(chain: WindowEncoder) -> None:
    encoded, sampled, draw = encode(chain, n=5), Negatives.parse("sampled:1"), random.Random(0)
    counts = Counter(sampled.example(encoded, chain, draw).preferences[0].rejected for _ in range(2000))
    assert len(counts) == 4
    assert all(400 < count < 600 for count in counts.values())  # 500 each, standard deviation 19


@pytest.mark.parametrize("n", [2, 3, 12])
def test_sequence_is_the_teachers_completion_against_another_order(n: int, encoder: WindowEncoder) -> None:
    teacher, encoded = tuple(i for i in PERMUTATION if i <= n), encode(encoder, n)
    for seed in range(10):
        pair = example(encoder, "sequence", n, draw=random.Random(seed))
        (preference,) = pair.preferences
        assert preference.step == 1
        assert parts(pair, preference)[0] == encoded.ids[: encoded.prompt_length]
        assert (pair.ids, preference.end) == (encoded.ids, len(encoded.ids))
        (rejected,) = preference.rejected
        answer = text(encoder, rejected)
        assert answer.endswith("<|im_end|>")
        parsed = encoder.format.parse(answer, n)
        assert not parsed.malformed
        assert parsed.permutation != teacher
        assert rejected == encoder.completion_ids(parsed.permutation)


def test_sequence_goes_as_far_as_the_teacher_is_trusted(encoder: WindowEncoder) -> None:
    for seed in range(20):
        pair = example(encoder, "sequence", n=5, choices=2, draw=random.Random(seed))
        _, right, (wrong,) = parts(pair, pair.preferences[0])
        chosen, rejected = text(encoder, right), text(encoder, wrong)
        expected = "Step 1: [3]\nStep 2: [3] > [1]" if encoder.settings.format == "chain" else "[3] > [1]"
        assert chosen.rstrip("\n >[") == expected
        assert "<|im_end|>" not in chosen + rejected
        first_two = encoder.format.parse(rejected, 5).permutation[:2]
        assert len(chosen) == len(rejected)
        assert first_two != (3, 1)


def test_sequence_of_one_passage_has_no_wrong_order(encoder: WindowEncoder) -> None:
    assert example(encoder, "sequence", n=1).preferences == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on_policy", Negatives("on_policy")),
        ("hardest", Negatives("hardest")),
        ("all", Negatives("all")),
        ("sequence", Negatives("sequence")),
        ("sampled:2", Negatives("sampled", 2)),
    ],
)
def test_parse(text: str, expected: Negatives) -> None:
    assert Negatives.parse(text) == expected


@pytest.mark.parametrize("text", ["", "random", "sampled", "sampled:", "sampled:0", "sampled:-1", "sampled:x", "all:2"])
def test_parse_errors_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"on_policy, hardest, sampled:m .*, all or sequence$") as error:
        Negatives.parse(text)
    assert "\n" not in str(error.value)


SCORES = [
    [-1.0, -2.0, -0.5, -3.0],  # the reference chooses 2, which is wrong
    [-0.1, -2.0, -1.0],  # it chooses the teacher's, and likes 2 most of the others
    [-1.0, -1.0],  # a tie is not a wrong choice
]


@pytest.mark.parametrize(("pick", "kept"), [("on_policy", [(1,), (), ()]), ("hardest", [(1,), (1,), (0,)])])
def test_the_reference_picks(pick: str, kept: list[tuple[int, ...]]) -> None:
    assert picked(pick, SCORES) == kept


def test_narrowed(chain: WindowEncoder) -> None:
    whole = example(chain, "hardest", n=4)
    found = whole.narrowed([(2, 0), (), (0,)])
    first, _, third = whole.preferences
    assert [p.step for p in found.preferences] == [1, 3]
    assert found.preferences[0].rejected == (first.rejected[2], first.rejected[0])
    assert found.preferences[0].lost == (first.lost[2], first.lost[0])
    assert found.preferences[1] == third
    assert (found.pick, found.ids) == (None, whole.ids)


# -- what a wrong choice costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gains", [(3, 2, 0, 1), (1.0, 0.5, 0.0), (1, 1), (0, 0, 2, 5, 0)])
def test_ndcg_lost_is_the_difference_of_two_orders(gains: tuple[float, ...]) -> None:
    def ndcg(order: list[float]) -> float:
        ideal = sorted(order, reverse=True)
        dcg, best = (sum(g / math.log2(1 + rank) for rank, g in enumerate(o, start=1)) for o in (order, ideal))
        return dcg / best

    for place, other in combinations(range(1, len(gains) + 1), 2):
        swapped = list(gains)
        swapped[place - 1], swapped[other - 1] = swapped[other - 1], swapped[place - 1]
        lost = max(0.0, ndcg(list(gains)) - ndcg(swapped))
        assert ndcg_lost(gains, place, other) == pytest.approx(lost, abs=1e-12)


def test_nothing_is_lost_where_nothing_is_relevant() -> None:
    assert ndcg_lost((0.0, 0.0), 1, 2) == 0


def test_steps_know_what_they_cost(chain: WindowEncoder) -> None:
    """The record grades its passages 0, 1, 2, 3, 0, ...; the teacher's order of 4 is 3, 1, 2, 4."""
    found = example(chain, "all", n=4).preferences
    gains = (2, 0, 1, 3)
    assert [p.lost for p in found] == [
        tuple(ndcg_lost(gains, p.step, later) for later in range(p.step + 1, 5)) for p in found
    ]
    assert found[0].lost[0] > 0 == found[0].lost[2]  # the last is better: no loss


@pytest.mark.parametrize(
    ("choices", "gains"),
    [(None, (1, 0.75, 0.5, 0.25, 0)), (2, (1, 0.75, 0.25, 0.25, 0.25)), (5, (1, 0.75, 0.5, 0.25, 0))],
)
def test_gains_without_judgements_are_the_teachers_ranks(choices: int | None, gains: tuple[float, ...]) -> None:
    for qrels in (None, {"q1-d1": 0}):  # or where nothing is judged relevant
        assert Window.of(replace(record(n=5), qrels=qrels, choices=choices), [4, 2, 0, 1, 3]).gains == gains
