"""What every source does with a broken line."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_modules.sources import (
    CandidatesSource,
    ConversationsSource,
    JsonlSource,
    MessagesSource,
    PairsSource,
    RankLLMSource,
    TeacherWindowsSource,
)
from data_modules.sources.base import OnError, Source
from lit_rerank.errors import UserError
from tests.sources.lines import Row, conversation, human_turn, write_lines


def windows_source(path: Path, on_error: OnError) -> TeacherWindowsSource:
    passages = write_lines(path.with_name("texts.jsonl"), {"docid": "a", "text": "A"}, {"docid": "b", "text": "B"})
    return TeacherWindowsSource(path, passages, on_error)


class Reader(NamedTuple):
    """A source, and a line that it reads."""

    open: Callable[[Path, OnError], Source[Any]]
    good: Row


AB = [{"docid": "a", "text": "A", "score": 2.5}, {"docid": "b", "text": "B", "score": 1}]
Q, A = ({"role": role, "content": "C"} for role in ("user", "assistant"))
READERS = {
    "own": Reader(
        lambda path, on_error: JsonlSource(path, on_error),
        {"qid": "q1", "query": "Q", "passages": AB, "permutation": [2, 1], "qrels": {"a": 1}},
    ),
    "windows": Reader(windows_source, {"qid": "q1", "query": "Q", "docids": ["a", "b"], "permutation": [2, 1]}),
    "conversations": Reader(
        lambda path, on_error: ConversationsSource(path, on_error),
        conversation(human_turn("Q", "A", "B"), "[2] > [1]"),
    ),
    "candidates": Reader(
        lambda path, on_error: CandidatesSource(path, on_error=on_error),
        {"qid": "q1", "query": "Q", "candidates": AB},
    ),
    "rank_llm": Reader(
        lambda path, on_error: RankLLMSource(path, on_error=on_error),
        {"query": {"text": "Q", "qid": "q1"}, "candidates": [{"docid": "a", "score": 2.5, "doc": {"contents": "A"}}]},
    ),
    "pairs": Reader(
        lambda path, on_error: PairsSource(path, on_error),
        {"prompt": "P", "chosen": "2 > 1", "rejected": "1 > 2"},
    ),
    "messages": Reader(lambda path, on_error: MessagesSource(path, on_error), {"messages": [Q, A]}),
}


def passages(*rows: Any) -> list[Any]:
    return [AB[0], *rows]


# (reader, what replaces or, if None, removes fields of the good line, what the message says)
REMOVED = object()
BROKEN_FIELDS: list[tuple[str, Row, str]] = [
    ("own", {"qid": REMOVED}, '"qid" is missing'),
    ("own", {"query": REMOVED}, '"query" is missing'),
    ("own", {"passages": REMOVED}, '"passages" is missing'),
    ("own", {"qid": 7}, '"qid" must be a string, not 7'),
    ("own", {"query": None}, '"query" must be a string, not None'),
    ("own", {"query": "half a pair: \ud83d"}, '"query" must be a string'),
    ("own", {"query": " "}, "query 'q1' has no text"),
    ("own", {"passages": []}, "query 'q1' has no passages"),
    ("own", {"passages": {}}, '"passages" must be a list of objects, not {}'),
    ("own", {"passages": passages("b")}, "\"passages\", item 2: must be a JSON object, not 'b'"),
    ("own", {"passages": passages({"docid": "b"})}, '"passages", item 2: "text" is missing'),
    ("own", {"passages": passages({"text": "B"})}, '"passages", item 2: "docid" is missing'),
    ("own", {"passages": passages({"docid": 2, "text": "B"})}, '"passages", item 2: "docid" must be a string, not 2'),
    ("own", {"passages": passages({**AB[1], "score": "1"})}, "\"score\" must be a finite number, not '1'"),
    ("own", {"passages": passages({**AB[1], "score": True})}, '"score" must be a finite number, not True'),
    ("own", {"passages": passages({**AB[1], "score": float("nan")})}, '"score" must be a finite number, not nan'),
    ("own", {"passages": passages({**AB[1], "score": float("-inf")})}, '"score" must be a finite number, not -inf'),
    ("own", {"passages": passages({**AB[1], "score": 10**400})}, '"score" must be a finite number, not 1000'),
    ("own", {"passages": passages(AB[0])}, "query 'q1' lists docid 'a' 2 times"),
    ("own", {"permutation": "x"}, "\"permutation\" must be a list of whole numbers, not 'x'"),
    ("own", {"permutation": [2, True]}, '"permutation" must be a list of whole numbers, not [2, True]'),
    ("own", {"permutation": [2, 1.0]}, '"permutation" must be a list of whole numbers, not [2, 1.0]'),
    ("own", {"permutation": [2]}, "the permutation of query 'q1' (2 passages) lacks [1]"),
    ("own", {"permutation": [2, 1, 1]}, "repeats [1]"),
    ("own", {"permutation": [2, 1, 3]}, "goes out of range with [3]"),
    ("own", {"permutation": [0, 1, 2]}, "goes out of range with [0]"),
    ("own", {"qrels": ["a"]}, "\"qrels\" must be an object of whole numbers, not ['a']"),
    ("own", {"qrels": {"a": True}}, "\"qrels\" must be an object of whole numbers, not {'a': True}"),
    ("windows", {"qid": REMOVED}, '"qid" is missing'),
    ("windows", {"docids": REMOVED}, '"docids" is missing'),
    ("windows", {"permutation": REMOVED}, '"permutation" is missing'),
    ("windows", {"permutation": None}, '"permutation" must be a list of whole numbers, not None'),
    ("windows", {"permutation": [1, False]}, '"permutation" must be a list of whole numbers, not [1, False]'),
    ("windows", {"permutation": [1]}, "lacks [2]"),
    ("windows", {"permutation": [1, 2, 2]}, "repeats [2]"),
    ("windows", {"permutation": [1, 2, 3]}, "goes out of range with [3]"),
    ("windows", {"docids": "ab"}, "\"docids\" must be a list of strings, not 'ab'"),
    ("windows", {"docids": ["a", 2]}, "\"docids\" must be a list of strings, not ['a', 2]"),
    ("windows", {"docids": ["a", "z"]}, "the passages file lacks docid 'z'"),
    ("windows", {"docids": ["a", "a"]}, "query 'q1' lists docid 'a' 2 times"),
    ("conversations", {"id": REMOVED}, '"id" is missing'),
    ("conversations", {"id": True}, '"id" must be a string or a whole number, not True'),
    ("conversations", {"conversations": REMOVED}, '"conversations" is missing'),
    ("conversations", {"conversations": "x"}, "\"conversations\" must be a list of objects, not 'x'"),
    ("conversations", {"conversations": [{"from": "human"}]}, '"conversations", item 1: "value" is missing'),
    ("conversations", {"conversations": []}, "\"conversations\" must hold one turn from 'human', not 0"),
    ("candidates", {"qid": REMOVED}, '"qid" is missing'),
    ("candidates", {"query": 3}, '"query" must be a string, not 3'),
    ("candidates", {"candidates": REMOVED}, '"candidates" is missing'),
    ("candidates", {"candidates": "x"}, "\"candidates\" must be a list of objects, not 'x'"),
    ("candidates", {"candidates": []}, "query 'q1' has no passages"),
    ("candidates", {"candidates": passages(AB[0])}, "query 'q1' lists docid 'a' 2 times"),
    ("candidates", {"candidates": passages({**AB[1], "score": float("inf")})}, "must be a finite number, not inf"),
    ("rank_llm", {"query": REMOVED}, '"query" is missing'),
    ("rank_llm", {"query": {"text": "Q"}}, '"query": "qid" is missing'),
    ("rank_llm", {"query": {"text": 1, "qid": 2}}, '"query": "text" must be a string, not 1'),
    ("rank_llm", {"query": "Q"}, '"candidates", item 1: "qid" is missing'),
    ("rank_llm", {"candidates": REMOVED}, '"candidates" (or hits) is missing'),
    ("rank_llm", {"candidates": []}, "query 'q1' has no passages"),
    ("rank_llm", {"candidates": [{"docid": 1, "doc": "A"}]}, "item 1: must be a JSON object, not 'A'"),
    ("rank_llm", {"candidates": [{"docid": 1, "doc": {}}]}, 'item 1: "text" (or segment, contents, content, body, pas'),
    ("rank_llm", {"candidates": [{"docid": 1.5, "doc": {"text": "A"}}]}, "must be a string or a whole number, not 1.5"),
    ("rank_llm", {"candidates": [{"docid": 1, "doc": {"text": "A", "title": 3}}]}, '"title" must be a string, not 3'),
    ("pairs", {"prompt": REMOVED}, "chosen and rejected do not begin with the same text"),
    ("pairs", {"prompt": REMOVED, "chosen": REMOVED}, '"chosen" is missing'),
    ("pairs", {"prompt": 1}, '"prompt" must be a string, not 1'),
    ("pairs", {"prompt": ""}, "the prompt is empty"),
    ("pairs", {"prompt": []}, "the prompt is empty"),
    ("pairs", {"prompt": [{"role": "user"}]}, '"prompt", item 1: "content" is missing'),
    ("pairs", {"chosen": REMOVED}, '"chosen" is missing'),
    ("pairs", {"rejected": None}, '"rejected" must be a string, not None'),
    ("pairs", {"rejected": "2 > 1"}, "chosen and rejected are the same"),
    ("pairs", {"chosen": []}, '"chosen" must hold exactly one message'),
    ("pairs", {"chosen": [{"role": "user", "content": "x"}]}, '"chosen" must hold exactly one message'),
]
BROKEN_FIELDS += [
    ("messages", {"messages": REMOVED}, '"messages" is missing'),
    ("messages", {"messages": "x"}, "\"messages\" must be a list of objects, not 'x'"),
    ("messages", {"messages": ["x"]}, "\"messages\", item 1: must be a JSON object, not 'x'"),
    ("messages", {"messages": [Q, {"role": "assistant"}]}, '"messages", item 2: "content" is missing'),
    ("messages", {"messages": [{"content": "C"}, A]}, '"messages", item 1: "role" is missing'),
    ("messages", {"messages": [Q, A | {"content": None}]}, 'item 2: "content" must be a string, not None'),
    ("messages", {"messages": [Q, A | {"content": "half: \ud83d"}]}, 'item 2: "content" must be a string'),
    ("messages", {"messages": [Q, {"role": "tool", "content": "C"}, A]}, "message 2 is of 'tool'; roles are system"),
    ("messages", {"messages": [Q, A | {"content": " "}]}, "message 2, of the assistant, is empty"),
    ("messages", {"messages": [Q | {"content": ""}, A]}, "message 1, of the user, is empty"),
    ("messages", {"messages": []}, "the assistant says nothing"),
    ("messages", {"messages": [Q]}, "the assistant says nothing"),
    ("messages", {"messages": [A, Q, A]}, "the assistant speaks before the user"),
]
BROKEN_LINES = [
    (b'{"qid": ', "not valid JSON: "),
    (b'{"qid": "a\x01"}', "not valid JSON: Invalid control character at (column 11)"),
    (b"[1, 2]", "must be a JSON object, not [1, 2]"),
    (b'"text"', "must be a JSON object, not 'text'"),
    (b"null", "must be a JSON object, not None"),
    (b'{"qid": "\xff"}', "not UTF-8: byte 10 of the line"),
    (b'{"qid": ' + b"9" * 5000 + b"}", "not usable JSON: "),
    (b"[" * 100_000, "not usable JSON: "),
]


def check(reader: Reader, folder: Path, broken: Row | bytes, message: str) -> None:
    """The broken line stands third of five; the second is blank."""
    path = write_lines(folder / "data.jsonl", reader.good, b"", broken, b" \t\r", reader.good)
    with pytest.raises(UserError) as raised:
        list(reader.open(path, "raise"))
    assert str(raised.value).startswith(f"{path}:3: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)

    source = reader.open(path, "skip")
    for _ in range(2):  # each pass counts anew
        assert len(list(source)) == 2
        assert source.skipped == [str(raised.value)]


@pytest.mark.parametrize(("name", "changes", "message"), BROKEN_FIELDS)
def test_broken_field(name: str, changes: Row, message: str, tmp_path: Path) -> None:
    reader = READERS[name]
    broken = {key: value for key, value in {**reader.good, **changes}.items() if value is not REMOVED}
    check(reader, tmp_path, broken, message)


@pytest.mark.parametrize(("broken", "message"), BROKEN_LINES)
@pytest.mark.parametrize("name", READERS)
def test_broken_line(name: str, broken: bytes, message: str, tmp_path: Path) -> None:
    check(READERS[name], tmp_path, broken, message)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
class TestEverySource:
    def test_reads_a_good_line_packed_or_not(self, reader: Reader, tmp_path: Path) -> None:
        plain = list(reader.open(write_lines(tmp_path / "data.jsonl", reader.good), "raise"))
        packed = list(reader.open(write_lines(tmp_path / "data.jsonl.gz", reader.good), "raise"))
        assert len(plain) == 1
        assert plain == packed

    def test_survives_windows_line_ends_and_a_byte_order_mark(self, reader: Reader, tmp_path: Path) -> None:
        line = b"\xef\xbb\xbf" + json.dumps(reader.good).encode() + b"\r"
        assert len(list(reader.open(write_lines(tmp_path / "data.jsonl", line), "raise"))) == 1

    def test_unknown_fields_are_ignored(self, reader: Reader, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.jsonl", reader.good | {"teacher": "t", "nan": float("nan")})
        assert len(list(reader.open(path, "raise"))) == 1

    def test_an_empty_file_has_no_records(self, reader: Reader, tmp_path: Path) -> None:
        assert list(reader.open(write_lines(tmp_path / "data.jsonl"), "raise")) == []

    def test_a_path_that_does_not_exist(self, reader: Reader, tmp_path: Path) -> None:
        path = tmp_path / "absent.jsonl"
        with pytest.raises(UserError, match="does not exist") as raised:
            reader.open(path, "skip")
        assert str(path) in str(raised.value)

    def test_an_unknown_on_error(self, reader: Reader, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.jsonl", reader.good)
        with pytest.raises(UserError, match="on_error is 'ignore'; it must be 'raise' or 'skip'"):
            reader.open(path, "ignore")  # type: ignore[arg-type]

    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_a_truncated_gzip_always_raises(self, on_error: OnError, reader: Reader, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.jsonl.gz", *[reader.good | {"noise": os.urandom(99).hex()}] * 2000)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UserError, match=r"data\.jsonl\.gz:\d+: cannot be read any further: .*end-of-stream"):
            list(reader.open(path, on_error))

    @pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"\n")[:-8] + b"12345678"])
    def test_a_broken_gzip_always_raises(self, content: bytes, reader: Reader, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"data\.jsonl\.gz:\d+: cannot be read any further: "):
            list(reader.open(path, "skip"))
