"""Permutation self-consistency: aggregates against brute force, and a window's shuffles."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, permutations
from math import exp, factorial, log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.records import Passage, Window
from lit_rerank.consistency import Order, SelfConsistent, borda, kemeny
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError
from lit_rerank.reading import SlidingWindow
from lit_rerank.reranker import Reranker
from tests.tiny import record


def distance(left: Order, right: Order) -> int:
    """Kendall's: the pairs that stand the other way round."""
    return sum((left.index(a) < left.index(b)) != (right.index(a) < right.index(b)) for a, b in combinations(left, 2))


def disagreement(order: Order, orders: Sequence[Order]) -> int:
    return sum(distance(order, other) for other in orders)


@st.composite
def same_passages(draw: st.DrawFn) -> list[Order]:
    n = draw(st.integers(1, 6))
    return draw(st.lists(st.permutations(range(1, n + 1)).map(tuple), min_size=1, max_size=7))


@given(same_passages())
@settings(deadline=None)
def test_kemeny_disagrees_least_of_all_orders(orders: list[Order]) -> None:
    least = min(disagreement(order, orders) for order in permutations(orders[0]))
    assert disagreement(kemeny(orders), orders) == least


def test_kemeny_of_a_circle() -> None:
    orders = [(1, 2, 3, 4), (2, 3, 1, 4), (3, 1, 2, 4), (3, 1, 2, 4)]
    assert kemeny(orders) == (3, 1, 2, 4)


@given(same_passages())
def test_borda_is_by_mean_rank(orders: list[Order]) -> None:
    ranks = {i: sum(order.index(i) for order in orders) / len(orders) for i in orders[0]}
    ordered = borda(orders)
    assert sorted(ordered) == sorted(orders[0])
    assert all(ranks[a] <= ranks[b] for a, b in pairwise(ordered))


class LeansOnPlace:
    """Orders by the number in the text, plus what standing first is worth."""

    def __init__(self) -> None:
        self.read: list[Window] = []

    def __call__(
        self, windows: Sequence[Window], choices: Sequence[int], progress: Callable[[int], object]
    ) -> list[Decoded]:
        self.read += windows
        decoded = []
        for window in windows:
            scores = [float(p.text) - 2.5 * (place == 0) for place, p in enumerate(window.passages)]
            order = tuple(sorted(range(1, len(window) + 1), key=lambda i, scores=scores: scores[i - 1]))
            decoded.append(Decoded(order, tuple(log(1 / (1 + rank)) for rank in range(len(window)))))
            progress(1)
        return decoded


def numbered(*numbers: int) -> Window:
    return Window("q", "query", tuple(Passage(f"d{n}", str(n)) for n in numbers))


@pytest.mark.parametrize("aggregate", ["kemeny", "borda"])
def test_what_leans_on_the_place_cancels_out(aggregate: Any) -> None:
    decoder: Any = LeansOnPlace()
    window = numbered(5, 3, 1, 4, 2, 6)
    (alone,) = decoder([window], [6], lambda count: None)
    ordered = (3, 5, 2, 4, 1, 6)
    assert alone.permutation != ordered
    decoder.read.clear()
    done: list[int] = []
    (found,) = SelfConsistent(decoder, 15, aggregate)([window], progress=done.append)
    assert found.permutation == ordered
    assert len({shown.passages for shown in decoder.read}) > 10
    assert sum(done) == 1
    assert found.logps is not None
    assert all(1 / 6 - 1e-9 <= exp(logp) <= 1 + 1e-9 for logp in found.logps)
    assert list(found.logps) == sorted(found.logps, reverse=True)


def test_no_order_comes_again_before_all_have_come() -> None:
    decoder: Any = LeansOnPlace()
    for m, n in ((2, 2), (3, 2), (4, 2), (6, 3), (13, 3)):
        decoder.read.clear()
        SelfConsistent(decoder, m)([numbered(*range(1, n + 1))])
        shown = [tuple(p.text for p in window.passages) for window in decoder.read]
        counts = [shown.count(order) for order in set(shown)]
        assert max(counts) == -(-m // factorial(n))
        assert len(set(shown)) == min(m, factorial(n))


def test_windows_of_one_query_get_orders_of_their_own() -> None:
    decoder: Any = LeansOnPlace()
    SelfConsistent(decoder, 2)([numbered(*range(9)), numbered(*range(10, 19))])
    first, _, second, _ = ([int(p.text) % 10 for p in window.passages] for window in decoder.read)
    assert first != second


def test_fewer_choices_that_matter_change_nothing(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(str(tiny_model), reading=SlidingWindow(6, 3, 12), self_consistency=3)
    passages = record(n=12).passages
    expected = reranker.rank("fleas", passages)
    reranker.reading = SlidingWindow(6, 3, 12, top_k=2)
    assert reranker.rank("fleas", passages)[:2] == expected[:2]


def test_kemeny_of_many_passages_is_refused_before_anything_is_read() -> None:
    def read(*_: object) -> list[Decoded]:
        raise AssertionError("hours of decoding")

    window = Window.of(record("q", 41), range(41))
    with pytest.raises(UserError, match="kemeny takes windows of up to 40 passages, not 41: take borda"):
        SelfConsistent(read, 2)([window])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="kemeny takes windows of up to 40 passages, not 41: take borda"):
        kemeny([tuple(range(1, 42))])


def test_the_same_every_time_and_for_every_batch() -> None:
    windows = [numbered(2, 1, 3), numbered(4, 2, 6, 1)]
    decoder: Any = LeansOnPlace()
    together = SelfConsistent(decoder, 3)(windows)
    assert together == [SelfConsistent(decoder, 3)([window])[0] for window in windows]


def test_through_the_python_api(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(
        str(tiny_model), reading=SlidingWindow(4, 2, 10), self_consistency=3, aggregate="borda"
    )
    passages = record(n=7).passages
    assert {p.docid for p in reranker.rank("fleas", passages)} == {p.docid for p in passages}


def test_settings_that_make_no_sense() -> None:
    decoder: Any = LeansOnPlace()
    with pytest.raises(UserError, match="self_consistency is 0"):
        SelfConsistent(decoder, 0)
    with pytest.raises(UserError, match="no aggregate 'mean'"):
        SelfConsistent(decoder, 2, "mean")  # type: ignore[arg-type]
