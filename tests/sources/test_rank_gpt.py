"""RankGPT's pair of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage, RankingRecord
from data_modules.sources import RankGPTSource
from lit_rerank.errors import UserError
from tests.sources.lines import Row, write_lines


def query(text: str, *docids: Any) -> Row:
    passages = [{"docid": docid, "title": "-", "text": f"text {docid}"} for docid in docids]
    return {"query": text, "positive_passages": passages[:1], "retrieved_passages": passages}


def source(folder: Path, rows: list[Any], responses: list[Any], **options: Any) -> RankGPTSource:
    candidates = write_lines(folder / "marco.jsonl", *rows)
    return RankGPTSource(candidates, write_lines(folder / "gpt.json", json.dumps(responses).encode()), **options)


def test_responses_order_the_passages_of_their_query(tmp_path: Path) -> None:
    one, two = source(tmp_path, [query("Q", "a", 2, "c"), b"", query("R", "d", "e")], ["[2] > [3] > [1]", "2 > 1"])
    passages = (Passage("a", "text a"), Passage("2", "text 2"), Passage("c", "text c"))
    assert one == RankingRecord("1", "Q", passages, (2, 3, 1), qrels={"a": 1})
    assert (two.qid, two.permutation) == ("2", (2, 1))


def test_hits_of_a_json_array(tmp_path: Path) -> None:
    rows = [{"query": "Q", "hits": [{"docid": 7, "content": "seven"}, {"docid": 8, "content": "eight"}]}]
    candidates = write_lines(tmp_path / "hits.json", json.dumps(rows).encode())
    responses = write_lines(tmp_path / "gpt.json", b'["[2] > [1]"]')
    (record,) = RankGPTSource(candidates, responses)
    assert record == RankingRecord("1", "Q", (Passage("7", "seven"), Passage("8", "eight")), (2, 1))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_files_of_different_length_always_raise(count: int, on_error: str, tmp_path: Path) -> None:
    pair = source(tmp_path, [query("Q", "a", "b")] * 2, ["[2] > [1]"] * count, on_error=on_error)
    with pytest.raises(UserError, match=rf"gpt\.json holds {count} responses to the 2 queries of .*marco\.jsonl"):
        list(pair)


@pytest.mark.parametrize(
    ("row", "response", "message"),
    [
        (query("Q", "a", "b"), "[2]", "the permutation of query '2' (2 passages) lacks [1]"),
        (query("Q", "a", "b"), "[2] > [1] > [2]", "repeats [2]"),
        (query("Q", "a", "b"), "[2] > [1] > [3]", "goes out of range with [3]"),
        (query("Q", "a", "b"), "", "lacks [1], [2]"),
        (query("Q", "a", "b"), [2, 1], "response 2 must be a string such as '[2] > [1]', not [2, 1]"),
        (query("Q", "a", "a"), "[2] > [1]", "lists docid 'a' 2 times"),
        ({"query": "Q"}, "[1]", '"retrieved_passages" (or hits) is missing'),
        (b"{", "[1]", "not valid JSON"),
    ],
)
def test_a_broken_query_leaves_the_others_their_responses(
    row: Row | bytes, response: Any, message: str, tmp_path: Path
) -> None:
    rows = [query("P", "a", "b"), row, query("R", "a", "b")]
    pair = source(tmp_path, rows, ["[1] > [2]", response, "[2] > [1]"], on_error="skip")
    assert [(record.qid, record.permutation) for record in pair] == [("1", (1, 2)), ("3", (2, 1))]
    assert len(pair.skipped) == 1
    assert pair.skipped[0].startswith(f"{pair.candidates}:2: ")
    assert message in pair.skipped[0]
    pair.on_error = "raise"
    with pytest.raises(UserError) as raised:
        list(pair)
    assert message in str(raised.value)


@pytest.mark.parametrize("content", [b'{"1": "[1]"}', b'["[1]"', b""])
def test_responses_that_are_no_array_always_raise(content: bytes, tmp_path: Path) -> None:
    candidates = write_lines(tmp_path / "marco.jsonl", query("Q", "a"))
    responses = write_lines(tmp_path / "gpt.json", content)
    with pytest.raises(UserError, match=r"gpt\.json.*(must hold a JSON array|not valid JSON)"):
        list(RankGPTSource(candidates, responses, on_error="skip"))
