"""The Python API."""

from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.prompt_settings import load_prompt_settings, save_prompt_settings
from lit_rerank.reading import SlidingWindow
from lit_rerank.reranker import Reranker
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
    save_prompt_settings(settings, tmp_path)
    assert load_prompt_settings(tmp_path) == settings


@pytest.mark.parametrize("content", ["{", '{"unknown": 1}', "[]"])
def test_broken_prompt_settings_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lit_rerank.json").write_text(content)
    with pytest.raises(UserError, match=r"lit_rerank\.json: not prompt settings"):
        load_prompt_settings(tmp_path)
