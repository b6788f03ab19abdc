"""evaluate.py rerank: real candidates and judgements in, a TREC run and trec_eval's numbers out."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ir_measures
import pytest

from data_modules.sources.detect import open_candidates
from data_modules.trec import read_run
from lit_rerank.as_trained import save_settings
from lit_rerank.cli import evaluate
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import keep_apart, make_way, write_figures
from lit_rerank.reading import Rounds, SlidingWindow
from lit_rerank.reranker import Reranker
from tests.references import save_adapter

ROOT = Path(__file__).resolve().parent.parent


def rerank(tmp_path: Path, model: Path, candidates: Path | None, *more: str) -> dict[str, Any]:
    metrics = tmp_path / "out" / "metrics.json"
    files = ["--run", str(tmp_path / "out" / "run.txt"), "--metrics", str(metrics)]
    given = [] if candidates is None else ["--candidates", str(candidates)]
    evaluate(["rerank", "--model", str(model), *given, *files, *more])
    return dict(json.loads(metrics.read_text()))


def write_candidates(path: Path, queries: int = 2, passages: int = 6) -> Path:
    with path.open("w") as file:
        for q in range(queries):
            candidates = [{"docid": f"d{i}", "text": f"passage {i} of {q}", "score": 9.0 - i} for i in range(passages)]
            file.write(json.dumps({"qid": f"q{q}", "query": f"query {q}", "candidates": candidates}) + "\n")
    return path


def test_real_candidates_get_the_numbers_of_ir_measures(tmp_path: Path, tiny_model: Path, shared_data: Path) -> None:
    candidates = shared_data / "trec-dl" / "dl21.bm25.top100.jsonl.gz"
    qrels = shared_data / "trec-dl" / "qrels.dl21.txt"
    more = ["--qrels", str(qrels), "--window", "3", "--stride", "2", "--depth", "5", "--max_passage_tokens", "8"]
    metrics = rerank(tmp_path, tiny_model, candidates, *more)
    assert metrics["first_stage.nDCG@10"] == pytest.approx(0.4458, abs=5e-5)
    measure = ir_measures.parse_measure("nDCG@10")
    official = ir_measures.calc_aggregate(
        [measure],
        ir_measures.read_trec_qrels(str(qrels)),
        ir_measures.read_trec_run(str(tmp_path / "out" / "run.txt")),
    )
    assert metrics["nDCG@10"] == pytest.approx(official[measure], abs=1e-9)
    assert metrics["queries"] == metrics["judged_queries"] == 53
    assert metrics["windows"] == 53 * 2
    assert "malformed_generate" not in metrics
    run = read_run(tmp_path / "out" / "run.txt")
    assert {len(ranking) for ranking in run.values()} == {100}


def test_without_judgements_only_the_run_is_written(tmp_path: Path, tiny_model: Path) -> None:
    metrics = rerank(tmp_path, tiny_model, write_candidates(tmp_path / "c.jsonl"), "--queries", "1")
    assert metrics.keys() == {"queries", "judged_queries", "judged_without_list", "windows", "seconds"}
    assert list(read_run(tmp_path / "out" / "run.txt")) == ["q0"]


def write_collection(folder: Path) -> Path:
    """Six documents on fleas, two queries, one judgement."""
    folder.mkdir()
    documents = [{"_id": f"d{i}", "text": "fleas " * i + f"and document number{i}"} for i in range(6)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.tsv").write_text("q1\tfleas\nq2\tdocument number3\n")
    (folder / "qrels.txt").write_text("q1 0 d0 1\n")
    return folder


def test_a_first_stage_retrieves_what_is_reranked(tmp_path: Path, tiny_model: Path) -> None:
    searched = ["--first_stage", "bm25", "--collection", str(write_collection(tmp_path / "fleas"))]
    metrics = rerank(tmp_path, tiny_model, None, *searched, "--window", "3", "--stride", "2", "--depth", "4")
    assert (metrics["queries"], metrics["judged_queries"], metrics["windows"]) == (2, 1, 4)
    assert metrics["first_stage.nDCG@10"] == 0.0  # d0 does not hold the word, and five others do
    run = read_run(tmp_path / "out" / "run.txt")
    assert {qid: len(ranking) for qid, ranking in run.items()} == {"q1": 4, "q2": 4}
    assert {docid for docid, _ in run["q1"]} <= {"d1", "d2", "d3", "d4", "d5"}

    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q2 0 d3 1\n")
    other = rerank(tmp_path, tiny_model, None, *searched, "--depth", "4", "--qrels", str(qrels), "--queries", "2")
    assert other["judged_queries"] == 1
    assert other["first_stage.nDCG@10"] == 1.0


def test_lists_can_be_shown_in_random_order(tmp_path: Path, tiny_model: Path) -> None:
    searched = ["--first_stage", "bm25", "--collection", str(write_collection(tmp_path / "fleas")), "--depth", "6"]
    orders, measured = [], []
    for shuffle in ([], ["--shuffle", "1"], ["--shuffle", "1"], ["--shuffle", "2"]):
        measured.append(rerank(tmp_path, tiny_model, None, *searched, *shuffle)["first_stage.nDCG@10"])
        orders.append([docid for docid, _ in read_run(tmp_path / "out" / "run.txt")["q1"]])
    assert orders[1] == orders[2]
    assert len({tuple(order) for order in orders}) == 3  # an untrained model leaves the lists as they are
    assert len({frozenset(order) for order in orders}) == 1
    assert len(set(measured)) == 1  # the first stage is measured in its own order


def test_what_is_shuffled_is_what_is_reranked(tmp_path: Path, tiny_model: Path) -> None:
    candidates = write_candidates(tmp_path / "c.jsonl", passages=9)
    rerank(tmp_path, tiny_model, candidates, "--depth", "4", "--shuffle", "1")
    for ranking in read_run(tmp_path / "out" / "run.txt").values():
        docids = [docid for docid, _ in ranking]
        assert sorted(docids[:4]) == ["d0", "d1", "d2", "d3"] != docids[:4]
        assert docids[4:] == ["d4", "d5", "d6", "d7", "d8"]


PASSAGES = [{"docid": f"d{i}", "text": f"passage {i}"} for i in range(3)]
REQUEST = {"query": {"text": "Q", "qid": "q1"}, "candidates": [{"docid": "d0", "score": 1.0, "doc": {"text": "T"}}]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.jsonl", {"qid": "q1", "query": "Q", "passages": PASSAGES, "qrels": {"d2": 1}}),
        ("candidates.jsonl", {"qid": "q1", "query": "Q", "candidates": PASSAGES}),
        ("requests.jsonl", REQUEST),
        ("requests.json", [REQUEST]),
        ("hits.jsonl", {"query": "Q", "hits": [{"qid": "q1", "docid": "d0", "content": "T", "score": 1.0}]}),
    ],
)
def test_the_layout_of_the_candidates_is_told_by_what_they_hold(
    tmp_path: Path, tiny_model: Path, name: str, content: Any
) -> None:
    (tmp_path / name).write_text(json.dumps(content) + "\n")
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q1 0 d0 1\n")
    metrics = rerank(tmp_path, tiny_model, tmp_path / name, "--qrels", str(qrels))
    assert (metrics["queries"], metrics["first_stage.nDCG@10"]) == (1, 1.0)
    if name == "own.jsonl":
        assert rerank(tmp_path, tiny_model, tmp_path / name)["first_stage.nDCG@10"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name either --candidates FILE, or --first_stage NAME together with --collection NAME"),
        (["--first_stage", "bm25"], "name either --candidates FILE, or"),
        (["--collection", "{here}/fleas"], "name either --candidates FILE, or"),
        (["--candidates", "{here}/fleas/corpus.jsonl", "--collection", "{here}/fleas"], "name either --candidates"),
        (["--first_stage", "splade", "--collection", "{here}/fleas"], "there is no first stage 'splade'"),
        (["--first_stage", "bm25", "--collection", "nowhere"], "there is no collection 'nowhere'; possible are"),
        (["--first_stage", "bm25", "--collection", "{here}/fleas/corpus.jsonl"], "corpus.jsonl holds no query"),
        (["--candidates", "{here}/fleas/corpus.jsonl"], r'corpus\.jsonl:1: has neither "candidates" nor "hits"'),
        (["--candidates", "{here}/fleas/qrels.txt"], r"qrels\.txt:1: not valid JSON"),
    ],
)
def test_what_to_rerank_is_told_in_exactly_one_way(tmp_path: Path, more: list[str], message: str) -> None:
    write_collection(tmp_path / "fleas")
    with pytest.raises(SystemExit, match=message) as stop:
        rerank(tmp_path, Path("/nowhere"), None, *(word.format(here=tmp_path) for word in more))
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "models/none"], "there is no model directory 'models/none'"),
        (["--adapter", "/nowhere"], "there is no adapter directory '/nowhere'"),
        (["--candidates", "none.jsonl"], "none.jsonl"),
        (["--qrels", "none.txt"], "none.txt"),
        (["--measures", '["nDCG@ten"]'], "there is no measure 'nDCG@ten'"),
        (["--run", "/dev/null/run.txt"], "error: /dev/null: "),
        (["--window", "5", "--stride", "5"], "the stride is at least 1 and less than the window"),
        (["--format", "poem"], "\"format\".*'chain', 'direct'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        rerank(tmp_path, tiny_model, write_candidates(tmp_path / "c.jsonl"), *more)
    said = f"{stop.value}\n{capsys.readouterr().err}"
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert stop.value.code not in (0, None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no query"),
        (["q1", "q1"], "query 'q1' has two lists of candidates"),
        (["q 1"], "'q 1' is empty or holds white space"),
    ],
)
def test_candidates_that_make_no_run_are_refused_before_the_model_is_loaded(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    candidates = tmp_path / "c.jsonl"
    rows = [{"qid": qid, "query": "q", "candidates": [{"docid": "d", "text": "t", "score": 1.0}]} for qid in lines]
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=message):
        rerank(tmp_path, Path("/nowhere"), candidates)


def test_a_directory_is_no_run_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is a directory; name a file"):
        rerank(tmp_path, Path("/nowhere"), write_candidates(tmp_path / "c.jsonl"), "--run", str(tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--run", "{here}/m", "--metrics", "{here}/m"], r"run and metrics are one file, .*/m: name two"),
        (["--run", "{here}/m", "--first_stage_run", "{here}/./m"], "run and first_stage_run are one file"),
        (["--run", "{here}/m", "--choices", "{here}/link"], "run and choices are one file"),
        (["--choices", "{here}/c.jsonl"], r"choices would overwrite .*c\.jsonl, which is read: name another file"),
        (["--qrels", "{here}/q.txt", "--metrics", "{here}/q.txt"], "metrics would overwrite"),
    ],
)
def test_no_file_is_written_over_another(tmp_path: Path, more: list[str], message: str) -> None:
    candidates = write_candidates(tmp_path / "c.jsonl")
    before = candidates.read_text()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    with pytest.raises(SystemExit, match=message) as stop:
        rerank(tmp_path, Path("/nowhere"), candidates, *(word.format(here=tmp_path) for word in more))
    assert "\n" not in str(stop.value)
    assert candidates.read_text() == before


def test_nothing_is_written_over_in_a_folder_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").touch()
    with pytest.raises(UserError, match=r"metrics would overwrite .*qrels\.txt in .*, which is read"):
        keep_apart({"metrics": str(tmp_path / "qrels.txt")}, [str(tmp_path)])
    keep_apart({"metrics": str(tmp_path / "new.json")}, [str(tmp_path)])


def test_figures_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "m.json", tmp_path / "link"
    link.symlink_to(file)
    write_figures({"n": 1}, str(link))
    assert link.is_symlink()
    write = Path.write_text

    def stopped(self: Path, text: str) -> None:
        write(self, text[:3])
        raise OSError("power cut")

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(OSError, match="power cut"):
        write_figures({"n": 2}, str(link))
    assert json.loads(file.read_text()) == {"n": 1}
    assert sorted(tmp_path.iterdir()) == [link, file]


@contextmanager
def as_somebody() -> Iterator[None]:
    """As a user whom the system asks for permissions: root it does not."""
    if os.getuid() == 0:
        os.setresuid(65534, -1, -1)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            os.setresuid(0, -1, -1)


def test_what_may_not_be_written_is_noticed_before() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine").touch()
        (folder / "locked").mkdir()
        (folder / "locked" / "mine").touch()
        for path, mode in ((folder, 0o777), (folder / "mine", 0o444), (folder / "locked", 0o555)):
            path.chmod(mode)
        (folder / "locked" / "mine").chmod(0o666)
        with as_somebody():
            make_way(str(folder / "file"))
            make_way("/dev/null")
            for file in (folder / "mine", folder / "locked" / "file", folder / "locked" / "mine"):
                with pytest.raises(UserError, match=r"cannot be written, for .* may not be changed"):
                    make_way(str(file))
        (folder / "locked").chmod(0o777)


def test_judgements_of_another_collection_are_noticed(tmp_path: Path, tiny_model: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("elsewhere 0 d1 1\n")
    with pytest.raises(SystemExit, match="judges none of the 2 queries"):
        rerank(tmp_path, tiny_model, write_candidates(tmp_path / "c.jsonl"), "--qrels", str(qrels))


def test_help_names_every_flag() -> None:
    command = [sys.executable, str(ROOT / "evaluate.py"), "rerank", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    data = ("candidates", "first_stage", "collection", "qrels")
    for flag in (*data, "model", "adapter", "run", "metrics", "format", "window", "stride", "depth"):
        assert f"--{flag} " in said


@pytest.mark.parametrize(
    "options",
    [
        *(["--decode", decode] for decode in ("first", "direct", "likelihood", "generate")),
        ["--top_k", "1"],
        ["--self_consistency", "3"],
        ["--self_consistency", "2", "--aggregate", "borda"],
    ],
    ids=" ".join,
)
def test_ways_to_decode(tmp_path: Path, tiny_model: Path, options: list[str]) -> None:
    candidates = write_candidates(tmp_path / "c.jsonl")
    metrics = rerank(tmp_path, tiny_model, candidates, "--window", "4", "--stride", "2", *options)
    assert metrics["windows"] == 4
    assert ("malformed_generate" in metrics) == ("generate" in options)
    for ranking in read_run(tmp_path / "out" / "run.txt").values():
        scores = [score for _, score in ranking]
        assert [int(score) for score in scores] == [5, 4, 3, 2, 1, 0]
        assert any(score % 1 for score in scores) == ("generate" not in options)


def test_the_first_stages_own_run_is_for_comparing(tmp_path: Path, tiny_model: Path) -> None:
    first = tmp_path / "out" / "first.txt"
    rerank(
        tmp_path, tiny_model, write_candidates(tmp_path / "c.jsonl"), "--depth", "4", "--first_stage_run", str(first)
    )
    run = read_run(first)
    assert {qid: [docid for docid, _ in ranking] for qid, ranking in run.items()} == {
        qid: [f"d{i}" for i in range(6)] for qid in ("q0", "q1")
    }


def test_lists_are_read_in_rounds(tmp_path: Path, tiny_model: Path) -> None:
    candidates = write_candidates(tmp_path / "c.jsonl")
    metrics = rerank(tmp_path, tiny_model, candidates, "--window", "4", "--depth", "5", "--rounds", "3")
    assert metrics["windows"] == 2 * 3 * 2  # lists, rounds, windows of a round
    reading = Rounds(window=4, depth=5, rounds=3)
    reranker = Reranker.from_pretrained(str(tiny_model), reading=reading)
    expected = reading.rerank(list(open_candidates(str(candidates))), reranker.decoder)
    run = read_run(tmp_path / "out" / "run.txt")
    assert {qid: [docid for docid, _ in ranking] for qid, ranking in run.items()} == {
        ranking.record.qid: [passage.docid for passage in ranking.passages] for ranking in expected
    }


def test_an_adapters_way_to_read_lists_counts_unless_another_is_named(tmp_path: Path, tiny_model: Path) -> None:
    candidates = write_candidates(tmp_path / "c.jsonl")
    adapter = str(save_adapter(tiny_model, tmp_path / "adapter", seed=1))
    save_settings(PromptSettings(), SlidingWindow(3, 1), adapter)

    def windows(*options: str) -> int:
        return int(rerank(tmp_path, tiny_model, candidates, "--adapter", adapter, *options)["windows"])

    assert windows() == 2 * 4
    assert windows("--window", "4") == 2 * 2  # and a stride of 2
    assert windows("--window", "20") == 2
    save_settings(PromptSettings(), Rounds(3, 6, 2), adapter)
    assert windows() == 2 * 2 * 2
    assert windows("--depth", "3") == 2 * 2
    assert windows("--rounds", "1") == 2 * 2
    shutil.copytree(tiny_model, tmp_path / "whole")  # as one that was fully fine-tuned
    save_settings(PromptSettings(), SlidingWindow(3, 1), tmp_path / "whole")
    assert rerank(tmp_path, tmp_path / "whole", candidates)["windows"] == 2 * 4
