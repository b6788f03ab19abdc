"""Runs are fused by reciprocal ranks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.trec import read_run, write_run
from lit_rerank.cli import evaluate
from lit_rerank.evaluation.fuse import reciprocal


def written(path: Path, run: dict[str, list[str]]) -> str:
    write_run({qid: [(d, float(-rank)) for rank, d in enumerate(docids)] for qid, docids in run.items()}, path, "t")
    return str(path)


def docids(path: Path) -> dict[str, list[str]]:
    return {qid: [docid for docid, _ in ranking] for qid, ranking in read_run(path).items()}


def test_sums_by_hand() -> None:
    fused = reciprocal([["a", "b", "c"], ["b", "d"]], k=1)
    assert fused == pytest.approx({"b": 1 / 3 + 1 / 2, "a": 1 / 2, "d": 1 / 3, "c": 1 / 4})
    assert list(fused) == ["b", "a", "d", "c"]


@given(st.permutations(list("abcdefgh")), st.integers(0, 100))
def test_a_ranking_and_itself_is_itself(ranking: list[str], k: int) -> None:
    assert list(reciprocal([ranking], k)) == list(reciprocal([ranking, ranking], k)) == ranking


def test_equals_stand_as_in_the_first(tmp_path: Path) -> None:
    one = written(tmp_path / "one.txt", {"q": ["z", "a", "m"]})
    other = written(tmp_path / "other.txt", {"q": ["a", "z", "m"]})
    evaluate(["fuse", one, other, "--run", str(tmp_path / "fused.txt")])
    assert docids(tmp_path / "fused.txt") == {"q": ["z", "a", "m"]}
    evaluate(["fuse", other, one, "--run", str(tmp_path / "fused.txt")])
    assert docids(tmp_path / "fused.txt") == {"q": ["a", "z", "m"]}


def test_depth_and_what_one_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one.txt", {"q": ["a", "b", "c"], "only": ["x"]})
    other = written(tmp_path / "other.txt", {"q": ["d", "c", "b"]})
    evaluate(["fuse", f"first={one}", f"second={other}", "--depth", "2", "--run", str(tmp_path / "fused.txt")])
    assert docids(tmp_path / "fused.txt") == {"q": ["a", "d", "b", "c"], "only": ["x"]}
    assert "second lacks 1 of 2 queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["other.txt", "--k", "-1"], "k is -1"),
        (["other.txt", "--depth", "0"], "depth 0"),
        ([], "two or more"),
        (["missing.txt"], r"missing\.txt does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "other.txt"):
        written(Path(name), {"q": ["a", "b"]})
    with pytest.raises(SystemExit, match=message) as stop:
        evaluate(["fuse", "one.txt", *more, "--run", "fused.txt"])
    assert "\n" not in str(stop.value)
    assert not Path("fused.txt").exists()
