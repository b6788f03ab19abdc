"""A small version of `make check-streaming`."""

from pathlib import Path

from scripts.check_streaming import check, growth


def test_every_record_is_used_once_by_two_processes_of_two_workers(tiny_model: Path, tmp_path: Path) -> None:
    count = 601
    found = check(tmp_path, count, model=str(tiny_model), shard_records=70)
    assert found["used_once"] == count
    assert found["used_more_often"] == found["never_used"] == 0
    assert found["empty_batches"] == [0, 0]
    assert found["tokens"] > 100 * count
    assert found["held_mb"] > 100


def test_what_grows_after_the_first_tenth_counts() -> None:
    looks = [{"self": 5, "1": 9}, {"self": 7, "1": 9}, *({"self": 7, "1": 9 + i} for i in range(8)), {"self": 8}]
    assert growth(looks) == 7
    assert growth([{"self": 5}, {"self": 9}, {"self": 8}]) == -1
