"""Sliding windows against a plain twin, and the Python API."""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.decoder import Decoded
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.reranker import Reranker, SlidingWindow, load_prompt_settings, rerank, save_prompt_settings
from tests.tiny import record


def by_number(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
    """An ideal reranker: orders each window by the number in its texts; beyond the choices asked for, backwards."""
    decoded = []
    for w, k in zip(windows, choices, strict=True):
        order = sorted(range(1, len(w) + 1), key=lambda i: int(w.passages[i - 1].text))
        decoded.append(Decoded((*order[:k], *reversed(order[k:])), tuple(-0.1 * i for i in range(len(w)))))
    return decoded


def numbered(qid: str, numbers: Sequence[int]) -> RankingRecord:
    return RankingRecord(qid, "query", tuple(Passage(f"d{number}", str(number)) for number in numbers))


def slide_alone(numbers: Sequence[int], window: int, stride: int, depth: int) -> list[int]:
    """The twin: sort slices of the list in place, from the bottom up, as RankGPT describes it."""
    ranked = list(numbers)
    end = min(depth, len(ranked))
    while True:
        start = max(0, end - window)
        ranked[start:end] = sorted(ranked[start:end])
        if start == 0:
            return ranked
        end -= stride


@given(
    lists=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    window=st.integers(2, 20),
    depth=st.integers(1, 60),
    data=st.data(),
)
def test_many_queries_advance_together_as_each_would_alone(
    lists: list[int], window: int, depth: int, data: st.DataObject
) -> None:
    sliding = SlidingWindow(window, data.draw(st.integers(1, window - 1)), depth)
    numbers = [random.Random(n).sample(range(n), n) for n in lists]
    rankings = rerank([numbered(f"q{i}", ns) for i, ns in enumerate(numbers)], by_number, sliding)
    for ns, ranking in zip(numbers, rankings, strict=True):
        expected = slide_alone(ns, window, sliding.stride, depth)
        assert [int(passage.text) for passage in ranking.passages] == expected
        assert len(ranking.decoded) == len(sliding.spans(len(ns)))


def test_the_spans_of_the_usual_setting() -> None:
    spans = SlidingWindow(20, 10, 100).spans(100)
    assert spans[0] == (80, 100)
    assert spans[-1] == (0, 20)
    assert len(spans) == 9
    assert SlidingWindow(20, 10, 100).spans(7) == [(0, 7)]


def test_run_scores_fall_strictly_and_order_the_run() -> None:
    (ranking,) = rerank([numbered("q", [3, 1, 2])], by_number, SlidingWindow())
    assert ranking.run == [("d1", 2.99), ("d2", 1 + 0.99 * exp(-0.1)), ("d3", 0.99 * exp(-0.2))]
    (ranking,) = rerank([numbered("q", [3, 1, 2])], by_number, SlidingWindow(2, 1, 2))
    assert ranking.run == [("d1", 2.99), ("d3", 1 + 0.99 * exp(-0.1)), ("d2", 0.0)]  # below the depth


@given(
    n=st.integers(1, 60), window=st.integers(2, 20), depth=st.integers(1, 60), top_k=st.integers(1, 70), data=st.data()
)
def test_the_top_k_are_the_same_with_fewer_choices(
    n: int, window: int, depth: int, top_k: int, data: st.DataObject
) -> None:
    numbers = random.Random(n).sample(range(n), n)
    whole = SlidingWindow(window, data.draw(st.integers(1, window - 1)), depth)
    (expected,) = rerank([numbered("q", numbers)], by_number, whole)
    (ranking,) = rerank([numbered("q", numbers)], by_number, replace(whole, top_k=top_k))
    reranked = min(top_k, depth)
    assert ranking.order[:reranked] == expected.order[:reranked]


def test_choices_that_matter() -> None:
    assert SlidingWindow(20, 10, 100).choices(100) == [20] * 9
    assert SlidingWindow(20, 10, 100, top_k=10).choices(100) == [10] * 9
    assert SlidingWindow(20, 10, 100, top_k=20).choices(100) == [10] * 8 + [20]
    assert SlidingWindow(20, 10, 100, top_k=25).choices(100) == [10] * 7 + [15, 20]
    assert SlidingWindow(20, 10, 100, top_k=3).choices(12) == [3]
    with pytest.raises(UserError, match="top_k is 0"):
        SlidingWindow(top_k=0)


@pytest.mark.parametrize(("window", "stride", "depth"), [(1, 1, 10), (5, 5, 10), (5, 0, 10), (5, 2, 0)])
def test_windows_that_cannot_slide_are_refused(window: int, stride: int, depth: int) -> None:
    with pytest.raises(UserError, match=f"window {window}, stride {stride}, depth {depth}"):
        SlidingWindow(window, stride, depth)


def test_rank_returns_every_passage_once(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(str(tiny_model), sliding=SlidingWindow(4, 2, 10))
    texts = [f"passage {i}" for i in range(9)]
    ranked = reranker.rank("fleas", texts)
    assert sorted(passage.text for passage in ranked) == texts
    assert [texts[int(passage.docid)] for passage in ranked] == [passage.text for passage in ranked]
    assert reranker.rank("fleas", []) == []


def test_rank_takes_passages_and_names_repeated_ones(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(str(tiny_model))
    assert {p.docid for p in reranker.rank("fleas", record(n=3).passages)} == {"q1-d1", "q1-d2", "q1-d3"}
    with pytest.raises(UserError, match="lists docid 'x' 2 times"):
        reranker.rank("fleas", [Passage("x", "a"), Passage("x", "b")])


@pytest.mark.parametrize("passages", ["abc", [None], [1, "a"]])
def test_what_is_no_list_of_passages_is_refused(tiny_model: Path, passages: Any) -> None:
    with pytest.raises(UserError, match="each a string or a Passage"):
        Reranker.from_pretrained(str(tiny_model)).rank("fleas", passages)


def test_a_passage_budget_of_nothing_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="max_passage_tokens is 0"):
        Reranker.from_pretrained(str(tiny_model), max_passage_tokens=0)


def test_prompt_settings_travel_with_the_weights(tmp_path: Path) -> None:
    assert load_prompt_settings(tmp_path) == PromptSettings()
    settings = PromptSettings("direct", max_passage_tokens=30, repeat_identifier=True)
    save_prompt_settings(settings, tmp_path)
    assert load_prompt_settings(tmp_path) == settings


@pytest.mark.parametrize("content", ["{", '{"unknown": 1}', "[]"])
def test_broken_prompt_settings_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lit_rerank.json").write_text(content)
    with pytest.raises(UserError, match=r"lit_rerank\.json: not prompt settings"):
        load_prompt_settings(tmp_path)
