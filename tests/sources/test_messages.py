"""Conversations of instruction data."""

import json
from pathlib import Path

import pytest

from data_modules.sources import Conversation, MessagesSource
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

MESSAGES = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "U\x85\u2028"},
    {"role": "assistant", "content": " A\n"},
    {"role": "user", "content": "?"},
]
TALK = Conversation(tuple(MESSAGES))
ROW = {"messages": [message | {"weight": 1} for message in MESSAGES], "source": "s"}


def test_every_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = write_lines(tmp_path / "data.jsonl.gz", ROW, ROW)
    array = write_lines(tmp_path / "data.json", json.dumps([ROW, ROW]).encode())
    folder = tmp_path / "messages"
    folder.mkdir()
    datasets.Dataset.from_list([ROW, ROW]).to_parquet(folder / "train.parquet")
    for path in (lines, array, folder / "train.parquet", folder):
        assert list(MessagesSource(path)) == [TALK, TALK]


def test_a_text_stands_alone(tmp_path: Path) -> None:
    said = {"role": "text", "content": " Fleas jump.\n"}
    path = write_lines(
        tmp_path / "data.jsonl", {"text": said["content"], "id": 1}, {"messages": [said]}, ROW | {"text": "T"}
    )
    assert list(MessagesSource(path)) == [Conversation((said,)), Conversation((said,)), TALK]
    with pytest.raises(UserError, match=r"data.jsonl:1: the text is empty"):
        list(MessagesSource(write_lines(tmp_path / "data.jsonl", {"text": " "})))
    with pytest.raises(UserError, match=r"message 2 is of 'text'; roles are system, user, assistant"):
        Conversation((MESSAGES[1], said, MESSAGES[2]))


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist, and is no Hub id such as HuggingFaceTB/"):
        MessagesSource(tmp_path / "absent")
