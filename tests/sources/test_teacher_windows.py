"""A teacher's windows with their passages in another file."""

import gzip
from pathlib import Path

import pytest

from data_modules.records import Passage, RankingRecord
from data_modules.sources import TeacherWindowsSource
from lit_rerank.errors import UserError
from tests.sources.lines import write_lines

WINDOW = {"qid": "q1", "query": "Q", "docids": ["b", "a"], "permutation": [2, 1]}
A, B = {"docid": "a", "text": "A\x85\u2028"}, {"docid": "b", "text": ""}


def test_passages_come_in_prompt_order(tmp_path: Path) -> None:
    source = TeacherWindowsSource(
        write_lines(tmp_path / "windows.jsonl", WINDOW), write_lines(tmp_path / "passages.jsonl", A, B, A)
    )
    expected = RankingRecord("q1", "Q", (Passage("b", ""), Passage("a", "A\x85\u2028")), (2, 1))
    assert list(source) == list(source) == [expected]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"{", "not valid JSON: "),
        (b'{"docid": "c"}', '"text" is missing'),
        (b'{"docid": 3, "text": "C"}', '"docid" must be a string, not 3'),
        (b'{"docid": "a", "text": "other"}', "docid 'a' has another text further up"),
    ],
)
def test_broken_passage(broken: bytes, message: str, tmp_path: Path) -> None:
    windows = write_lines(tmp_path / "windows.jsonl", WINDOW)
    passages = write_lines(tmp_path / "passages.jsonl", A, broken, B)
    with pytest.raises(UserError) as raised:
        list(TeacherWindowsSource(windows, passages))
    assert str(raised.value).startswith(f"{passages}:2: {message}")

    source = TeacherWindowsSource(windows, passages, on_error="skip")
    assert len(list(source)) == 1
    assert source.skipped == [str(raised.value)]


def test_skipped_lines_of_both_files_are_counted(tmp_path: Path) -> None:
    windows = write_lines(tmp_path / "windows.jsonl", WINDOW)
    passages = write_lines(tmp_path / "passages.jsonl", A, b"{}")
    source = TeacherWindowsSource(windows, passages, on_error="skip")
    assert list(source) == []
    assert source.skipped == [
        f'{passages}:2: "docid" is missing',
        f"{windows}:1: the passages file lacks docid 'b'",
    ]


def test_absent_passages(tmp_path: Path) -> None:
    windows = write_lines(tmp_path / "windows.jsonl", WINDOW)
    with pytest.raises(UserError, match=r"absent\.jsonl does not exist"):
        TeacherWindowsSource(windows, tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="is a directory, not a file"):
        TeacherWindowsSource(windows, tmp_path)


def test_real_windows(shared_data: Path) -> None:
    train = shared_data / "train"
    source = TeacherWindowsSource(train / "dl19.teacher_windows.jsonl.gz", train / "dl19.passages.jsonl.gz")
    records = list(source)
    assert len(records) == 6512
    assert len({record.qid for record in records}) == 43
    assert {len(record.passages) for record in records} == {20}
    assert all(record.permutation is not None for record in records)

    texts = {passage.docid: passage.text for record in records for passage in record.passages}
    with gzip.open(train / "dl19.passages.jsonl.gz") as lines:
        assert len(texts) == sum(1 for _ in lines) == 10852
    assert sum("\x85" in text or "\u2028" in text for text in texts.values()) == 2
