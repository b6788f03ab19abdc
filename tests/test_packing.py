"""A packed row against the sequences that it holds."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rerank.chat import Ids
from lit_rerank.packing import Layout, Packed, Packer

Question = tuple[int, int, Ids, int]  # trunk, length, branch, token

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def pack(trunks: Sequence[Ids], questions: Sequence[Question]) -> Packed:
    packer = Packer()
    numbers = [packer.trunk(ids) for ids in trunks]
    for index, (trunk, length, branch, token) in enumerate(questions):
        assert packer.ask(numbers[trunk], length, token, branch) == index
    return packer.pack()


def ancestors(packed: Packed, place: int) -> list[int]:
    """The places of all that a token sees, itself last."""
    path = []
    while place >= 0:
        path.append(place)
        place = packed.parents[place]
    return path[::-1]


def seen_by_layout(layout: Layout) -> torch.Tensor:
    """(tokens, tokens) who sees whom, put together from the layout's parts."""
    seen = torch.zeros(len(layout), len(layout), dtype=torch.bool)
    for segment in layout.segments:
        trunk = [*range(segment.common), *range(segment.trunk.start, segment.trunk.stop)]
        keys = [*trunk, *range(segment.branches.start, segment.branches.stop)]
        for i, place in enumerate(trunk):
            seen[place, trunk[: i + 1]] = True
        for place, visible in zip(keys[len(trunk) :], segment.visible, strict=True):
            seen[place, torch.tensor(keys)[visible]] = True
    return seen


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[Ids], list[Question]]:
    trunks = draw(st.lists(IDS, min_size=1, max_size=4))
    questions = []
    for _ in range(draw(st.integers(1, 10))):
        trunk = draw(st.integers(0, len(trunks) - 1))
        length = draw(st.integers(1, len(trunks[trunk])))
        questions.append((trunk, length, draw(st.one_of(st.just(()), IDS)), draw(st.integers(0, 9))))
    return trunks, questions


@given(asked())
@settings(deadline=None)
def test_completions_are_laid_out_as_their_tokens_one_by_one(case: tuple[list[Ids], list[Question]]) -> None:
    trunks, questions = case
    at_once, one_by_one = Packer(), Packer()
    for packer in (at_once, one_by_one):
        for ids in trunks:
            packer.trunk(ids)
    for trunk, length, branch, token in questions:
        tokens = (*branch, token)
        asked = [one_by_one.ask(trunk, length, each, tokens[:i]) for i, each in enumerate(tokens)]
        assert at_once.ask_each(trunk, length, tokens) == asked
    left, right = at_once.pack(), one_by_one.pack()
    assert left.parents == right.parents
    for name in ("ids", "place", "token"):
        assert torch.equal(getattr(left, name), getattr(right, name))


@given(asked())
@settings(deadline=None)
def test_the_row_is_the_tree_of_what_is_asked_about(case: tuple[list[Ids], list[Question]]) -> None:
    trunks, questions = case
    packed = pack(trunks, questions)
    ids, layout = packed.ids.tolist(), packed.layout
    contexts = [trunks[trunk][:length] + branch for trunk, length, branch, _ in questions]
    for place, token, context, question in zip(packed.place, packed.token, contexts, questions, strict=True):
        assert tuple(ids[p] for p in ancestors(packed, int(place))) == context
        assert int(token) == question[-1]
    seen = seen_by_layout(layout)
    for place in range(len(packed)):
        path = ancestors(packed, place)
        assert seen[place].nonzero()[:, 0].tolist() == sorted(path)
        assert layout.positions[place] == len(path) - 1
    segments = [part for s in layout.segments for part in (s.trunk, s.branches)]
    assert [slice(0, layout.common), *segments][-1].stop == len(layout) == len(packed)
    assert all(left.stop == right.start for left, right in pairwise([slice(0, layout.common), *segments]))


@given(asked())
@settings(deadline=None)
def test_within_a_tree_no_token_stands_twice(case: tuple[list[Ids], list[Question]]) -> None:
    trunks, questions = case
    packed = pack(trunks, questions)
    by_trunk: dict[int, set[Ids]] = {}
    for trunk, length, branch, _ in questions:
        context = trunks[trunk][:length] + branch
        by_trunk.setdefault(trunk, set()).update(context[: i + 1] for i in range(len(context)))
    common = packed.layout.common
    assert len(packed) == common + sum(len(tree) - common for tree in by_trunk.values())


def test_wrong_identifiers_are_one_token_for_each_inner_node() -> None:
    """After [, the candidates 4, 10, 12 and 17 of which 12 is the trunk's: `1` is the trunk's own token."""
    trunk = (50, 51, 1, 2, 60, 61)
    questions = []
    for candidate in ((4, 60), (1, 0, 60), (1, 2, 60), (1, 7, 60)):
        questions += [(0, 2, candidate[:i], token) for i, token in enumerate(candidate)]
    packed = pack([trunk], questions)
    assert packed.ids.tolist() == [50, 51, 1, 2, 4, 0, 7]
    assert packed.layout.positions.tolist() == [0, 1, 2, 3, 2, 3, 3]
    assert packed.layout.segments[0].trunk == slice(0, 4)  # what follows the last question is not read


def test_a_common_beginning_stands_once() -> None:
    packed = pack(
        [(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 9)], [(0, 4, (), 0), (1, 3, (7,), 0), (2, 4, (), 0), (2, 1, (), 0)]
    )
    assert packed.layout.common == 2
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 7, 3, 9]
    assert packed.place.tolist() == [3, 5, 7, 0]


def test_a_trunk_that_nobody_asks_about_is_not_read() -> None:
    packed = pack([(1, 2), (3, 4, 5)], [(1, 2, (), 0)])
    assert packed.ids.tolist() == [3, 4]


def test_every_wrong_identifier_of_every_step() -> None:
    """20 passages, every wrong identifier at every step: 190 branches of a trunk of 2,500 tokens."""
    draw = random.Random(0)
    trunk = tuple(draw.randrange(1000) for _ in range(2500))
    questions = [(0, 1500 + 50 * step, (2000 + i,), 7) for step in range(20) for i in range(20 - step)]
    packed = pack([trunk], questions)
    assert len(packed) == 1500 + 50 * 19 + 210
    assert packed.layout.segments[0].visible.shape == (210, 2450 + 210)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_everything_is_on_the_device(device: str) -> None:
    packer = Packer()
    packer.ask(packer.trunk((1, 2)), 1, 3, (4,))
    packed = packer.pack(device)
    tensors = [packed.ids, packed.place, packed.token, packed.layout.positions, packed.layout.segments[0].visible]
    assert {tensor.device.type for tensor in tensors} == {device}


@pytest.mark.parametrize("length", [-1, 0, 3])
def test_a_context_lies_on_its_trunk(length: int) -> None:
    packer = Packer()
    with pytest.raises(ValueError, match="1 to 2 tokens"):
        packer.ask(packer.trunk((1, 2)), length, 5)
