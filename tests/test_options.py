"""Choosing among identifiers of several tokens, against multiplying probabilities up along each one's tokens."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rerank.chat import Ids
from lit_rerank.options import Options
from lit_rerank.packing import Packer


def ends_in_nine(ids: list[int]) -> Ids:
    """None begins another: 9 is in the last place alone."""
    return (*ids, 9)


OPTIONS = st.lists(st.lists(st.integers(0, 2), max_size=3).map(ends_in_nine), min_size=1, max_size=8, unique=True)


def ask(options: list[Ids]) -> tuple[Options, Packer]:
    packer = Packer()
    return Options.ask(packer, packer.trunk((5, 6, 7)), 3, options), packer


@given(OPTIONS, st.data())
def test_log_probabilities_and_the_greedy_option(options: list[Ids], data: st.DataObject) -> None:
    asked, packer = ask(options)
    if len(options) == 1:
        assert asked.logps([]) == [0.0]
        assert asked.greedy([]) == 0
        return
    packed = packer.pack()
    answers = [log(data.draw(st.integers(1, 100)) / 100) for _ in packed.token]  # equal, or not by rounding alone

    def following(path: Ids) -> dict[int, float]:
        """What goes on from a beginning, with probabilities that sum up to 1."""
        tokens = {ids[len(path)] for ids in options if ids[: len(path)] == path}
        if len(tokens) == 1:
            return dict.fromkeys(tokens, 1.0)
        raw = {token: 2.718281828459045 ** answers[asked.branchings[path][token]] for token in tokens}
        return {token: value / sum(raw.values()) for token, value in raw.items()}

    for ids, logp in zip(options, asked.logps(answers), strict=True):
        probability = 1.0
        for depth, token in enumerate(ids):
            probability *= following(ids[:depth])[token]
        assert logp == pytest.approx(log(probability))
    path: Ids = ()
    while path not in options:
        path += (max(sorted(following(path)), key=following(path).__getitem__),)
    assert options[asked.greedy(answers)] == path
    assert asked.options == tuple(options)


def test_only_branchings_are_asked_about() -> None:
    asked, packer = ask([(1, 9), (2, 9), (2, 1, 9), (0, 0, 9)])
    assert asked.branchings.keys() == {(), (2,)}
    packed = packer.pack()
    assert len(packed.token) == 5
    assert packed.ids.tolist() == [5, 6, 7, 2]


def test_greedy_is_not_the_likeliest_option() -> None:
    asked, _ = ask([(1, 1, 9), (1, 2, 9), (2, 9)])
    places = asked.branchings
    answers = [0.0] * 4
    for path, token, p in (((), 1, 0.6), ((), 2, 0.4), ((1,), 1, 0.5), ((1,), 2, 0.5)):
        answers[places[path][token]] = log(p)
    assert asked.greedy(answers) == 0
    assert max(asked.logps(answers)) == asked.logps(answers)[2]
