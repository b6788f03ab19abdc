"""Conversations of RankVicuna's and RankZephyr's training sets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_modules.records import Passage, RankingRecord
from data_modules.sources import ConversationsSource, TeacherWindowsSource
from lit_rerank.errors import UserError
from tests.sources.lines import conversation, human_turn, write_lines

ROW = conversation(human_turn("what is it", "One", "Two", "Three"), "[2] > [3] > [1]")
RECORD = RankingRecord(
    "q1", "what is it", (Passage("q1:1", "One"), Passage("q1:2", "Two"), Passage("q1:3", "Three")), (2, 3, 1)
)


def read_one(folder: Path, human: str, gpt: str = "[1] > [2] > [3]") -> RankingRecord:
    [record] = ConversationsSource(write_lines(folder / "data.jsonl", conversation(human, gpt)))
    return record


def texts(record: RankingRecord) -> list[str]:
    return [passage.text for passage in record.passages]


class TestHumanTurn:
    def test_query_passages_and_answer(self, tmp_path: Path) -> None:
        assert list(ConversationsSource(write_lines(tmp_path / "data.jsonl", ROW))) == [RECORD]

    def test_a_number_is_an_id_too(self, tmp_path: Path) -> None:
        [record] = ConversationsSource(write_lines(tmp_path / "data.jsonl", ROW | {"id": 12}))
        assert record.qid == "12"
        assert record.passages[2].docid == "12:3"

    @pytest.mark.parametrize(
        "passages",
        [
            ("Foot[2] note", "[3] and [1]", "end [1]"),
            ("One\n[7] a line of its own\n[3] another", "Two\n[1] back", "Three\n[2] back\n[9] and on"),
            ("[1] as its own text\n[1] again", "Two", "Three"),
            ("One\n\nSearch Query: not yet.", "Two\nRank the 3 passages above", "Three"),
            ("I will provide you with 9 passages", "query: other", "Three"),
            ("One\x85", "\u2028Two\u2028[3] no new line", "\u2029Three"),
            ("", "", ""),
            ("One\n\nparagraph", "\u00a0", "[12345678901234567890] [x] []"),
            ("[" + "9" * 5000 + "]", "\n[" + "9" * 5000 + "]x", "Three"),
        ],
    )
    def test_odd_passages_survive(self, passages: tuple[str, ...], tmp_path: Path) -> None:
        assert texts(read_one(tmp_path, human_turn("Q", *passages))) == [text.strip("\n") for text in passages]

    @pytest.mark.parametrize(
        "query",
        [
            "tracheids are part of _____.",
            "what?",
            "the query: with a colon",
            "[1] not a passage",
            "a\x85b\u2028c",
            "1.5",
        ],
    )
    def test_odd_queries_survive(self, query: str, tmp_path: Path) -> None:
        assert read_one(tmp_path, human_turn(query, "A", "B", "C")).query == query

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("\n[", "\n\n["),
            ("\n", "\r\n"),
            ("search query: what is it.\n", "search query: what is it\n"),
            ("search query: what is it.\n", "query: what is it.\n"),
            ("relevance to the search query: what is it.\n", "relevance.\n"),
            ("Search Query: what is it.\n\nRank", "Search Query: what is it.\nRank"),
            ("Search Query: what is it.\n\nRank", "Rank"),
            ("\n\nSearch", "\nSearch"),
            ("\n[1]", "[1]"),
        ],
    )
    def test_variations(self, old: str, new: str, tmp_path: Path) -> None:
        human = human_turn("what is it", "One", "Two", "Three")
        assert old in human
        assert read_one(tmp_path, human.replace(old, new), "[2] > [3] > [1]") == RECORD

    @pytest.mark.parametrize("answer", ["[2]>[3]>[1]", "[2] > [3] > [1].", "\n[2], [3], [1]\n", "Answer: [2] [3] [1]"])
    def test_answers(self, answer: str, tmp_path: Path) -> None:
        assert read_one(tmp_path, human_turn("what is it", "One", "Two", "Three"), answer) == RECORD

    @pytest.mark.parametrize(
        ("human", "gpt", "message"),
        [
            (human_turn("Q", "A", "B"), "[]", "the permutation of query 'q1' (2 passages) lacks [1], [2]"),
            (human_turn("Q", "A", "B"), "", "lacks [1], [2]"),
            (human_turn("Q", "A", "B"), "2] > [1]", "lacks [2]"),
            (human_turn("Q", "A", "B"), "[2] > [1] > [2]", "repeats [2]"),
            (human_turn("Q", "A", "B"), "[2] > [1] > [3]", "goes out of range with [3]"),
            (human_turn("", "A", "B"), "[2] > [1]", "query 'q1' has no text"),
            (human_turn("Q", "A\n[2] or here", "B"), "[2] > [1]", "passage [2] could begin in more than one place"),
            (human_turn("Q", "A", "B\n[2] or here"), "[2] > [1]", "passage [2] could begin in more than one place"),
            (human_turn("Q", "A", "B").replace("\n[2]", "\n[3]"), "[2] > [1]", "passage [2] is missing"),
            (human_turn("Q", "A", "B").replace("\n[1]", "\n"), "[2] > [1]", "passage [1] is missing"),
            (human_turn("Q", "A", "B").replace("with 2", "with 3"), "[2] > [1]", "passage [3] is missing"),
            (human_turn("Q", "A", "B").replace("with 2", "with 0"), "[2] > [1]", 'lacks "I will provide you with N'),
            (human_turn("Q", "A", "B").replace("Rank the 2", ""), "[2] > [1]", 'lacks "Rank the N passages above"'),
            (re.sub("(?i)search query: Q.", "", human_turn("Q", "A", "B")), "[2] > [1]", 'lacks "search query: ..."'),
            ("hello", "[1]", 'the human turn lacks "I will provide you with N passages"'),
        ],
    )
    def test_broken(self, human: str, gpt: str, message: str, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.jsonl", ROW, conversation(human, gpt))
        with pytest.raises(UserError) as raised:
            list(ConversationsSource(path))
        assert str(raised.value).startswith(f"{path}:2: ")
        assert message in str(raised.value)

    def test_two_answers_are_one_too_many(self, tmp_path: Path) -> None:
        row = {"id": "q1", "conversations": ROW["conversations"] + [{"from": "gpt", "value": "[1]"}]}
        with pytest.raises(UserError, match="must hold one turn from 'gpt', not 2"):
            list(ConversationsSource(write_lines(tmp_path / "data.jsonl", row)))

    def test_the_system_turn_may_be_absent(self, tmp_path: Path) -> None:
        row = {"id": "q1", "conversations": ROW["conversations"][1:]}
        assert list(ConversationsSource(write_lines(tmp_path / "data.jsonl", row))) == [RECORD]


class TestJsonArray:
    @pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
    @pytest.mark.parametrize("indent", [None, 2])
    def test_read(self, name: str, indent: int | None, tmp_path: Path) -> None:
        content = "\n" + json.dumps([ROW, ROW | {"id": 2}], indent=indent)
        records = list(ConversationsSource(write_lines(tmp_path / name, content.encode())))
        assert records[0] == RECORD
        assert [record.qid for record in records] == ["q1", "2"]

    def test_broken_records_are_numbered(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.json", json.dumps([ROW, {"id": "q2"}, 3, ROW]).encode())
        with pytest.raises(UserError) as raised:
            list(ConversationsSource(path))
        assert str(raised.value) == f'{path}: record 2: "conversations" is missing'
        source = ConversationsSource(path, on_error="skip")
        assert list(source) == [RECORD, RECORD]
        assert source.skipped == [str(raised.value), f"{path}: record 3: must be a JSON object, not 3"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\n[\n1,\n}]", ":4: not valid JSON: Expecting value (column 1)"),
            (b"[1,", ":1: not valid JSON: Expecting value"),
            (b"", ": not valid JSON: Expecting value"),
            (b'["\xff"]', ": not usable JSON: "),
            (b"[" * 100_000, ": not usable JSON: "),
            (b'{"id": 1}', ": must hold a JSON array"),
        ],
    )
    def test_a_broken_array_always_raises(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "data.json"
        path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            list(ConversationsSource(path, on_error="skip"))
        assert str(raised.value).startswith(f"{path}{message}")


class TestDataset:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = pytest.importorskip("datasets").config
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "data-train.json"])
    def test_a_folder(self, name: str, tmp_path: Path) -> None:
        folder = tmp_path / "training_data"
        folder.mkdir()
        write_lines(folder / name, ROW, ROW | {"id": "q2"})
        records = list(ConversationsSource(folder))
        assert records[0] == RECORD
        assert [record.qid for record in records] == ["q1", "q2"]

    def test_broken_records_are_numbered(self, tmp_path: Path) -> None:
        folder = tmp_path / "training_data"
        folder.mkdir()
        write_lines(folder / "train.jsonl", ROW, conversation("hello", "[1]"))
        source = ConversationsSource(folder, on_error="skip")
        assert list(source) == [RECORD]
        assert source.skipped == [f'{folder}: record 2: the human turn lacks "I will provide you with N passages"']

    def test_a_hub_id_is_loaded_by_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(path: str, split: str) -> list[Any]:
            assert (path, split) == ("castorini/rank_zephyr_training_data", "train")
            return [ROW]

        monkeypatch.setattr("datasets.load_dataset", load)
        assert list(ConversationsSource("castorini/rank_zephyr_training_data")) == [RECORD]

    @pytest.mark.parametrize("name", ["folder", "nobody-at-all/nothing"])
    def test_what_cannot_be_loaded(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("folder").mkdir()
        source = ConversationsSource(name, on_error="skip")
        with pytest.raises(
            UserError, match=f"^{name}: cannot be loaded, neither from disk nor from the Hub: ."
        ) as raised:
            list(source)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "name", ["absent", "absent/data.jsonl", "absent/data.json", "absent/data.gz", "/a/b", "a/b/c"]
    )
    def test_what_cannot_be_a_hub_id_must_exist(self, name: str) -> None:
        with pytest.raises(UserError, match=f"{name} does not exist, and is no Hub id"):
            ConversationsSource(name)


def test_real_conversations_equal_their_windows(shared_data: Path) -> None:
    train = shared_data / "train"
    records = list(ConversationsSource(train / "dl19.rank_zephyr_layout.sample.jsonl.gz"))
    assert len(records) == len({record.qid for record in records}) == 800
    windows = TeacherWindowsSource(train / "dl19.teacher_windows.jsonl.gz", train / "dl19.passages.jsonl.gz")
    known = {(window.query, tuple(texts(window)), window.permutation) for window in windows}
    for record in records:
        assert len(record.passages) == 20
        assert (record.query, tuple(texts(record)), record.permutation) in known
