"""Queries that one side lacks, docids that stand twice and scores that are no numbers are told by name."""

import json
from pathlib import Path

import pytest

from data_modules import PermutationDataModule
from data_modules.sources import CandidatesSource, TrecSource
from data_modules.trec import read_qrels, read_run
from lit_rerank.errors import UserError
from lit_rerank.evaluation.lists import judged_lists
from tests.test_evaluation import write_collection
from tests.tiny import record
from tests.training import write_candidates


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Lists of q0, q1, q2, and judgements of q1, q2, q3."""
    candidates, qrels = tmp_path / "c.jsonl", tmp_path / "qrels.txt"
    write_candidates([record(f"q{i}", 3) for i in range(3)], candidates, qrels)
    judged = [line for line in qrels.read_text().splitlines() if not line.startswith("q0 ")]
    qrels.write_text("\n".join([*judged, "q3 0 x 1"]) + "\n")
    return str(candidates), str(qrels)


def test_reranking_names_both(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    candidates, qrels = files
    lists = judged_lists(candidates, None, None, qrels, 10, None)
    assert [record.qid for record in lists.records if record.qrels] == ["q1", "q2"]
    assert lists.counts == {"queries": 3, "judged_queries": 2, "judged_without_list": 1}
    assert capsys.readouterr().out == (
        "1 judged queries have no list of candidates and do not count: q3\n"
        "1 queries have no judgement and do not count: q0\n"
    )


def test_what_was_left_out_on_purpose_is_not_missing(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    judged_lists(files[0], None, None, files[1], 10, 2)
    assert capsys.readouterr().out == "1 queries have no judgement and do not count: q0\n"


def test_many_are_named_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidates, qrels = tmp_path / "c.jsonl", tmp_path / "qrels.txt"
    write_candidates([record(f"q{i:02d}", 2) for i in range(30)], candidates, qrels)
    qrels.write_text("q00 0 q00-d1 1\n")
    judged_lists(str(candidates), None, None, str(qrels), 10, None)
    assert capsys.readouterr().out == (
        f"29 queries have no judgement and do not count: {', '.join(f'q{i:02d}' for i in range(1, 21))} and 9 more\n"
    )


def test_a_collections_own_judgements_are_missed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_collection(tmp_path / "fleas")
    (folder / "qrels.txt").write_text("q1 0 d0 1\nq8 0 d0 1\n")
    lists = judged_lists(None, "bm25", str(folder), None, 3, None)
    assert lists.unlisted == ["q8"]
    assert capsys.readouterr().out == (
        "1 judged queries have no list of candidates and do not count: q8\n"
        "1 queries have no judgement and do not count: q2\n"
    )
    (folder / "qrels.txt").unlink()
    judged_lists(None, "bm25", str(folder), None, 3, None)
    assert capsys.readouterr().out == f"{folder} judges none of the 2 queries: how good the lists are is not measured\n"


def test_training_names_lists_without_judgements(
    files: tuple[str, str], tiny_model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    candidates = CandidatesSource(files[0], qrels=files[1])
    with caplog.at_level("INFO"):
        PermutationDataModule(candidates=candidates, tokenizer=str(tiny_model)).setup("validate")
    said = caplog.text + capsys.readouterr().err
    assert "candidates: 1 lists have no judgement and do not count: q0" in said


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("q1 Q0 a 1 2 t\nq1 Q0 a 2 1 t\n", r"run\.txt:2: query 'q1' lists docid 'a' twice"),
        ("q1 Q0 a 1 nan t\n", r"run\.txt:1: the score must be a finite number, not 'nan'"),
        ("q9 Q0 a 1 1 t\n", r"queries\.tsv lacks query 'q9'"),
        ("q1 Q0 z 1 1 t\n", r"query 'q1' lists docid 'z', which .*docs\.jsonl lacks"),
    ],
)
def test_runs_beside_queries_and_documents(run: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text(run)
    (tmp_path / "docs.jsonl").write_text(json.dumps({"docid": "a", "text": "A"}) + "\n")
    (tmp_path / "queries.tsv").write_text("q1\tone\n")
    with pytest.raises(UserError, match=message):
        list(TrecSource(tmp_path / "run.txt", tmp_path / "docs.jsonl", tmp_path / "queries.tsv"))


@pytest.mark.parametrize("score", ["1_0", "١", "0x1p3", "infinity", "1e999", "-", "."])
def test_scores_that_other_languages_read(score: str, tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text(f"q Q0 a 1 {score} t\n")
    with pytest.raises(UserError, match="the score must be a finite number"):
        read_run(tmp_path / "run.txt")


def test_packed_runs_and_qrels_are_read(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "run.txt.gz").write_bytes(gzip.compress(b"q Q0 a 1 1 t\n"))
    (tmp_path / "qrels.txt.gz").write_bytes(gzip.compress(b"q 0 a 1\n"))
    assert read_run(tmp_path / "run.txt.gz") == {"q": [("a", 1.0)]}
    assert read_qrels(tmp_path / "qrels.txt.gz") == {"q": {"a": 1}}
