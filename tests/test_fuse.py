"""Runs are fused by reciprocal ranks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.trec import read_run, write_run
from lit_rerank.cli import evaluate
from lit_rerank.fusion import reciprocal


def written(path: Path, run: dict[str, list[str]]) -> str:
    write_run({qid: [(d, float(-rank)) for rank, d in enumerate(docids)] for qid, docids in run.items()}, path, "t")
    return str(path)


def docids(path: Path) -> dict[str, list[str]]:
    return {qid: [docid for docid, _ in ranking] for qid, ranking in read_run(path).items()}


def test_sums_by_hand() -> None:
    # b: 1/3 + 1/2, a: 1/2, d: 1/3, c: 1/4
    assert reciprocal([["a", "b", "c"], ["b", "d"]], k=1) == ["b", "a", "d", "c"]


@given(st.permutations(list("abcdefgh")), st.integers(0, 100))
def test_a_ranking_and_itself_is_itself(ranking: list[str], k: int) -> None:
    assert reciprocal([ranking], k) == reciprocal([ranking, ranking], k) == ranking


@given(st.integers(0, 10**12))
def test_k_may_be_as_large_as_it_likes(k: int) -> None:
    assert reciprocal([list("abc"), list("bca")], k) == list("bac")


@given(st.permutations(list("abc")), st.integers(0, 100))
def test_equals_are_equal_in_whatever_order_they_are_summed(first: list[str], k: int) -> None:
    rotated = [first[turn:] + first[:turn] for turn in range(3)]
    assert reciprocal(rotated, k) == first


def test_equals_stand_as_in_the_first(tmp_path: Path) -> None:
    one = written(tmp_path / "one.txt", {"q": ["z", "a", "m"]})
    other = written(tmp_path / "other.txt", {"q": ["a", "z", "m"]})
    evaluate(["fuse", one, other, "--run", str(tmp_path / "fused.txt")])
    assert read_run(tmp_path / "fused.txt") == {"q": [("z", 2.0), ("a", 1.0), ("m", 0.0)]}
    evaluate(["fuse", other, one, "--run", str(tmp_path / "fused.txt")])
    assert docids(tmp_path / "fused.txt") == {"q": ["a", "z", "m"]}


def test_depth_and_what_one_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one.txt", {"q": ["a", "b", "c"], "only": ["x"]})
    other = written(tmp_path / "other.txt", {"q": ["d", "c", "b"]})
    evaluate(["fuse", one, other, "--depth", "2", "--run", str(tmp_path / "fused.txt")])
    assert docids(tmp_path / "fused.txt") == {"q": ["a", "d", "b", "c"], "only": ["x"]}
    assert "other.txt lacks 1 of 2 queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["other.txt", "--k", "-1", "--run", "fused.txt"], "k is -1"),
        (["other.txt", "--depth", "0", "--run", "fused.txt"], "depth 0"),
        (["--run", "fused.txt"], "two or more"),
        (["missing.txt", "--run", "fused.txt"], r"missing\.txt does not exist"),
        (["elsewhere.txt", "--run", "fused.txt"], r"no query is in two of one\.txt, elsewhere\.txt"),
        (["other.txt", "--run", "other.txt"], r"run would overwrite other\.txt"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, qid in {"one": "q", "other": "q", "elsewhere": "p"}.items():
        written(Path(f"{name}.txt"), {qid: ["a", "b"]})
    before = Path("other.txt").read_text()
    with pytest.raises(SystemExit, match=message) as stop:
        evaluate(["fuse", "one.txt", *options])
    assert "\n" not in str(stop.value)
    assert not Path("fused.txt").exists()
    assert Path("other.txt").read_text() == before
