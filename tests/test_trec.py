"""TREC qrels and runs."""

import os
from pathlib import Path

import pytest

from data_modules.trec import read_qrels, read_run, write_run
from lit_rerank.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


class TestQrels:
    def test_read(self, path: Path) -> None:
        path.write_bytes("q1 0 a 3\r\n\nq1\tQ0\tb  -1\nq2 0 é 0\nq1 0 a 3\n".encode())
        assert read_qrels(path) == {"q1": {"a": 3, "b": -1}, "q2": {"é": 0}}

    def test_a_byte_order_mark_is_no_part_of_a_name(self, path: Path) -> None:
        path.write_text("q1 0 a 3\nq1 0 b 0\n", encoding="utf-8-sig")
        assert read_qrels(path) == {"q1": {"a": 3, "b": 0}}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"q1 0 a", "has 3 columns, not the 4 of `qid 0 docid grade`"),
            (b"q1 Q0 a 1 2.5 tag", "has 6 columns, not the 4"),
            (b"q1 0 b 1.0", "the grade must be a whole number, not '1.0'"),
            (b"q1 0 b x", "the grade must be a whole number, not 'x'"),
            (b"q1 0 b 1_0", "the grade must be a whole number, not '1_0'"),
            (b"q1 0 a 2", "docid 'a' of query 'q1' has another grade further up"),
            (b"q1 0 \xff 2", "not UTF-8"),
        ],
    )
    def test_broken(self, line: bytes, message: str, path: Path) -> None:
        path.write_bytes(b"q1 0 a 3\n\n" + line + b"\n")
        with pytest.raises(UserError) as raised:
            read_qrels(path)
        assert str(raised.value).startswith(f"{path}:3: {message}")

    def test_absent(self, path: Path) -> None:
        with pytest.raises(UserError, match=r"file\.txt does not exist"):
            read_qrels(path)
        with pytest.raises(UserError, match="is a directory, not a file"):
            read_qrels(path.parent)

    def test_a_pipe(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(UserError, match=r"file\.txt is no regular file"):
            read_qrels(path)

    @pytest.mark.parametrize(
        ("name", "queries", "judgements"),
        [
            ("trec-dl/qrels.dl19.txt", 43, 9260),
            ("trec-dl/qrels.dl21.txt", 53, 10828),
            ("cranfield/qrels.txt", 225, 1837),
        ],
    )
    def test_real(self, name: str, queries: int, judgements: int, shared_data: Path) -> None:
        qrels = read_qrels(shared_data / name)
        assert len(qrels) == queries
        assert sum(map(len, qrels.values())) == judgements


class TestReadRun:
    def test_order_is_that_of_the_scores_not_the_ranks(self, path: Path) -> None:
        path.write_text("q1 Q0 a 1 1.5 t\nq2 Q0 a 1 -2 t\nq1 Q0 b 2 3e0 t\n\nq1 Q0 9 3 1.5 t\nq1 Q0 10 4 1.5 t\n")
        assert read_run(path) == {"q1": [("b", 3.0), ("a", 1.5), ("9", 1.5), ("10", 1.5)], "q2": [("a", -2.0)]}

    def test_scores_tie_in_single_precision(self, path: Path) -> None:
        path.write_text("q Q0 a 1 1.00000001 t\nq Q0 b 2 1.0 t\n")
        assert [docid for docid, _ in read_run(path)["q"]] == ["b", "a"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"q1 0 a 1", "has 4 columns, not the 6 of `qid Q0 docid rank score tag`"),
            (b"q1 Q0 a 2 1 t", "query 'q1' lists docid 'a' twice"),
            (b"q1 Q0 b 2 nan t", "the score must be a finite number, not 'nan'"),
            (b"q1 Q0 b 2 -inf t", "the score must be a finite number, not '-inf'"),
            (b"q1 Q0 b 2 1e39 t", "the score must be a finite number, not '1e39'"),
            (b"q1 Q0 b 2 high t", "the score must be a finite number, not 'high'"),
            (b"q1 Q0 \xff 2 1 t", "not UTF-8"),
        ],
    )
    def test_broken(self, line: bytes, message: str, path: Path) -> None:
        path.write_bytes(b"q1 Q0 a 1 2.5 t\n\n" + line + b"\n")
        with pytest.raises(UserError) as raised:
            read_run(path)
        assert str(raised.value).startswith(f"{path}:3: {message}")

    def test_real(self, shared_data: Path) -> None:
        run = read_run(shared_data / "cranfield" / "run.bm25.txt")
        assert len(run) == 225
        assert {len(ranking) for ranking in run.values()} == {100}


class TestWriteRun:
    def test_round_trip(self, path: Path) -> None:
        run: dict[str, list[tuple[str, float]]] = {
            "q1": [("b", 3.0), ("a", 0.1), ("9", 0.1), ("10", -1e-9)],
            "q2": [("é", 1)],
            "empty": [],
        }
        write_run(run, path, tag="test")
        assert path.read_text(encoding="utf-8").splitlines()[:2] == ["q1 Q0 b 1 3.0 test", "q1 Q0 a 2 0.1 test"]
        assert read_run(path) == {"q1": run["q1"], "q2": run["q2"]}
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            ({"q": [("a", 1.0), ("b", 2.0)]}, "trec_eval would reorder query 'q'"),
            ({"q": [("a", 1.0), ("b", 1.0)]}, "trec_eval would reorder query 'q'"),
            ({"q": [("a", 1.00000001), ("b", 1.0)]}, "trec_eval would reorder query 'q'"),
            ({"q": [("a", 2.0), ("a", 1.0)]}, "query 'q' lists a docid twice"),
            ({"q": [("a", float("nan"))]}, "query 'q' has a score that is not finite"),
            ({"q": [("a", float("inf"))]}, "query 'q' has a score that is not finite"),
            ({"q": [("a b", 1.0)]}, "'a b' is empty or holds white space"),
            ({"q": [("", 1.0)]}, "'' is empty or holds white space"),
            ({"q\n": [("a", 1.0)]}, "is empty or holds white space"),
        ],
    )
    def test_what_a_run_cannot_hold(self, run: dict[str, list[tuple[str, float]]], message: str, path: Path) -> None:
        path.write_text("old")
        with pytest.raises(ValueError, match=message):
            write_run(run, path, tag="test")
        assert path.read_text() == "old"
        assert list(path.parent.iterdir()) == [path]

    def test_a_packed_run_is_written_as_it_is_read(self, path: Path) -> None:
        packed, run = path.with_name("run.txt.gz"), {"q": [("a", 1.0)]}
        write_run(run, packed, tag="test")
        first = packed.read_bytes()
        assert first.startswith(b"\x1f\x8b")
        assert read_run(packed) == run
        write_run(run, packed, tag="test")
        assert packed.read_bytes() == first

    def test_a_tag_is_one_word(self, path: Path) -> None:
        with pytest.raises(ValueError, match="'my run' is empty or holds white space"):
            write_run({"q": [("a", 1.0)]}, path, tag="my run")

    def test_real_run_is_written_as_it_was_read(self, path: Path, shared_data: Path) -> None:
        run = read_run(shared_data / "cranfield" / "run.bm25.txt")
        write_run(run, path, tag="bm25")
        assert read_run(path) == run

    def test_order_is_that_of_trec_eval(self, path: Path) -> None:
        evaluator = pytest.importorskip("pytrec_eval").RelevanceEvaluator({"q": {"a": 1, "b": 0}}, {"recip_rank"})
        for scores in ({"a": 1.0, "b": 1.0}, {"a": 1.00000001, "b": 1.0}, {"a": 1.0000002, "b": 1.0}):
            path.write_text("".join(f"q Q0 {docid} 1 {score!r} t\n" for docid, score in scores.items()))
            ranking = [docid for docid, _ in read_run(path)["q"]]
            assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == 1 / (ranking.index("a") + 1)
