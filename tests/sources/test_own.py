"""The project's own layout."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules.records import Passage, RankingRecord
from data_modules.sources import JsonlSource, TeacherWindowsSource
from data_modules.sources.own import write_jsonl
from tests.sources.lines import write_lines

ODD = "next\x85line, line\u2028separator, \u2029, \x0c, tab\t, new\nline, \x00, \U0001f600"
FULL = RankingRecord(
    qid="q1",
    query=ODD,
    passages=(Passage("a", ODD, 0.1), Passage("b", "", -3.0), Passage("c", " ")),
    permutation=(3, 1, 2),
    qrels={"a": 0, "z": 3, "b": -1},
)
BARE = RankingRecord("q2", "Q", (Passage("a", "A"),))


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    write_jsonl([FULL, BARE], tmp_path / name)
    assert list(JsonlSource(tmp_path / name)) == [FULL, BARE]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(texts=st.lists(st.text(), min_size=1, max_size=4), score=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_score_survive(texts: list[str], score: float, tmp_path: Path) -> None:
    record = RankingRecord("q", "Q", tuple(Passage(str(i), text, score) for i, text in enumerate(texts)))
    write_jsonl([record], tmp_path / "data.jsonl")
    assert list(JsonlSource(tmp_path / "data.jsonl")) == [record]


def test_control_characters_that_are_not_escaped_do_not_split_a_line(tmp_path: Path) -> None:
    line = '{"qid": "q", "query": "Q", "passages": [{"docid": "a", "text": "one\x85two\u2028three\u2029"}]}'
    [record] = JsonlSource(write_lines(tmp_path / "data.jsonl", line.encode()))
    assert record.passages[0].text == "one\x85two\u2028three\u2029"


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    passages = [{"docid": "a", "text": "A", "score": None}]
    row = {"qid": "q2", "query": "Q", "passages": passages, "permutation": None, "qrels": None}
    assert list(JsonlSource(write_lines(tmp_path / "data.jsonl", row))) == [BARE]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    def records() -> Iterator[RankingRecord]:
        yield FULL
        raise RuntimeError("no more")

    path = tmp_path / "data.jsonl"
    write_jsonl([BARE], path)
    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(records(), path)
    assert list(JsonlSource(path)) == [BARE]
    assert list(tmp_path.iterdir()) == [path]


def test_a_score_that_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl([RankingRecord("q", "Q", (Passage("a", "A", float("nan")),))], tmp_path / "data.jsonl")


def test_real_windows_round_trip(shared_data: Path, tmp_path: Path) -> None:
    train = shared_data / "train"
    windows = list(TeacherWindowsSource(train / "dl19.teacher_windows.jsonl.gz", train / "dl19.passages.jsonl.gz"))
    write_jsonl(windows[:500], tmp_path / "data.jsonl.gz")
    assert list(JsonlSource(tmp_path / "data.jsonl.gz")) == windows[:500]
