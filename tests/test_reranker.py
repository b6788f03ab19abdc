"""The Python API."""

from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage
from lit_rerank.as_trained import load_prompt_settings, load_reading, save_settings
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.reading import Rounds, SlidingWindow, Twice
from lit_rerank.reranker import Reranker
from tests.references import save_adapter
from tests.tiny import record


def test_rank_returns_every_passage_once(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(str(tiny_model), reading=SlidingWindow(4, 2, 10))
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
    save_settings(settings, SlidingWindow(8, 3), tmp_path)
    assert load_prompt_settings(tmp_path) == settings


def test_how_lists_are_read_travels_with_them(tmp_path: Path) -> None:
    assert load_reading(tmp_path) == SlidingWindow(20, 10, 100)
    for reading in (SlidingWindow(8, 3, 100), Rounds(4, 100, 3), Twice(8, 3, 100, 2)):
        save_settings(PromptSettings(), reading, tmp_path)
        assert load_reading(tmp_path) == reading
    save_settings(PromptSettings(), SlidingWindow(8, 3, 30, top_k=5), tmp_path)
    assert load_reading(tmp_path) == SlidingWindow(8, 3, 100)  # how deep and how much of it, whoever reranks says
    (tmp_path / "lit_rerank.json").write_text('{"format": "direct"}')  # of an older adapter
    assert load_reading(tmp_path) == SlidingWindow(20, 10, 100)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("[]", "not prompt settings"),
        ('{"reading": 8}', "reading is 8: it has window, stride, rounds, whole numbers"),
        ('{"reading": {"window": "8"}}', "whole numbers"),
        ('{"reading": {"depth": 8}}', "it has window, stride, rounds"),
        ('{"reading": {"window": 8, "stride": 8}}', "reading: window 8, stride 8"),
    ],
)
def test_what_is_no_way_to_read_lists_is_named(tmp_path: Path, content: str, wrong: str) -> None:
    (tmp_path / "lit_rerank.json").write_text(content)
    with pytest.raises(UserError, match=rf"lit_rerank\.json: {wrong}" if wrong.startswith("not") else wrong):
        load_reading(tmp_path)


def test_an_adapter_reads_lists_as_it_was_trained_to_unless_told_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    adapter = str(save_adapter(tiny_model, tmp_path / "a", seed=1))
    save_settings(PromptSettings(), SlidingWindow(4, 1), adapter)
    assert Reranker.from_pretrained(str(tiny_model), adapter).reading == SlidingWindow(4, 1)
    assert Reranker.from_pretrained(str(tiny_model)).reading == SlidingWindow()
    reading = Rounds(3, 10, 2)
    assert Reranker.from_pretrained(str(tiny_model), adapter, reading=reading).reading == reading


@pytest.mark.parametrize("content", ["{", '{"unknown": 1}', '{"two\\nlines": 1}', "[]"])
def test_broken_prompt_settings_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lit_rerank.json").write_text(content)
    with pytest.raises(UserError, match=r"lit_rerank\.json: not prompt settings") as error:
        load_prompt_settings(tmp_path)
    assert "\n" not in str(error.value)
