"""RankLLM's requests."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage, RankingRecord
from data_modules.sources import RankLLMSource
from data_modules.sources.rank_llm import TEXTS
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

REQUEST = {
    "query": {"text": "how long do fleas live", "qid": 264014},
    "candidates": [
        {"docid": "d7", "score": 15.5, "doc": {"contents": "Up to a year."}},
        {"docid": 8, "score": 14, "doc": {"segment": "In stages.", "title": "Fleas", "url": "x"}},
        {"docid": "d9", "score": 13.0, "doc": {"body": "", "title": None}},
    ],
}
OLD = {
    "query": "how long do fleas live",
    "hits": [
        {"content": "Up to a year.", "qid": 264014, "docid": "d7", "rank": 1, "score": 15.5},
        {"content": "Fleas: In stages.", "qid": 264014, "docid": "8", "rank": 2, "score": 14.0},
        {"content": "", "qid": 264014, "docid": "d9", "rank": 3, "score": 13.0},
    ],
}
PASSAGES = (Passage("d7", "Up to a year.", 15.5), Passage("8", "Fleas: In stages.", 14.0), Passage("d9", "", 13.0))
RECORD = RankingRecord("264014", "how long do fleas live", PASSAGES)


@pytest.mark.parametrize("row", [REQUEST, OLD])
@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.json", "data.json.gz"])
def test_both_layouts_as_lines_and_as_an_array(row: dict[str, Any], name: str, tmp_path: Path) -> None:
    rows = [row] if ".jsonl" in name else [json.dumps([row], indent=2).encode()]
    assert list(RankLLMSource(write_lines(tmp_path / name, *rows))) == [RECORD]


@pytest.mark.parametrize("name", TEXTS)
def test_the_names_of_a_text(name: str, tmp_path: Path) -> None:
    row = {"query": {"text": "Q", "qid": "q"}, "candidates": [{"docid": "d", "doc": {name: "T"}}]}
    (record,) = RankLLMSource(write_lines(tmp_path / "data.jsonl", row))
    assert record.passages == (Passage("d", "T"),)


def test_judgements_depth_and_teacher(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", REQUEST)
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("264014 0 8 1\n")
    (record,) = RankLLMSource(path, qrels, depth=2, teacher="qrels")
    assert record.passages == PASSAGES[:2]
    assert record.permutation == (2, 1)
    assert record.qrels == {"8": 1}
    assert next(iter(RankLLMSource(path, teacher="first_stage"))).permutation == (1, 2, 3)


def test_broken_items_of_an_array_are_numbered(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.json", json.dumps([REQUEST, {"query": "Q", "hits": []}, 3]).encode())
    source = RankLLMSource(path, on_error="skip")
    assert list(source) == [RECORD]
    assert source.skipped == [
        f"{path}: record 2: query '' has no passages",
        f"{path}: record 3: must be a JSON object, not 3",
    ]


def test_lines_are_to_be_named_so(tmp_path: Path) -> None:
    message = r"data\.json:2: not valid JSON: Extra data .*; a file with one object a line is to be named \.jsonl$"
    with pytest.raises(UserError, match=message):
        list(RankLLMSource(write_lines(tmp_path / "data.json", REQUEST, REQUEST)))
