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


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist, and is no Hub id such as HuggingFaceTB/"):
        MessagesSource(tmp_path / "absent")
