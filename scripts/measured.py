"""What `make results` measures: how a row ranks, and what it still knows. What is measured is not measured again."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from data_modules.choices import ChoicesSource, write_choices
from data_modules.sources.base import existing_file
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_qrels, read_run, write_run
from lit_rerank.comparison.windows import by_query, slid_order
from lit_rerank.errors import UserError
from lit_rerank.evaluation.fuse import scored
from lit_rerank.evaluation.report import write_figures
from lit_rerank.evaluation.rerank import in_first_stage_order
from lit_rerank.measures import means, parse_measures, per_query
from scripts.recipes import dtype
from scripts.rows import LISTS, MODEL, TWICE, WINDOW, Row

PROMPT = ("--max_passage_tokens", "60", "--repeat_identifier", "true")
QUESTIONS = 570
MMLU = "test_20_per_subject.jsonl.gz"
DETAILS = "mmlu.details.jsonl"


def check_measurable(lists: Path, mmlu: Path) -> None:
    """Raise a UserError that names the first file which measuring needs and is not there."""
    for name in (*(f"dl21.{first_stage}.top100.jsonl.gz" for first_stage in LISTS), "qrels.dl21.txt"):
        existing_file(lists / name)
    existing_file(mmlu / MMLU)


def measure(name: str, row: Row, lists: Path, mmlu: Path, runs: Path) -> None:
    """Rank a row's lists to its depths, and ask what the model still knows."""
    folder = runs / "measured" / name
    adapter = None if row.training is None else runs / row.training / "adapter"
    for first_stage in row.lists:
        for depth in row.depths:
            (rank_twice if row.twice else rank)(adapter, row.decode, first_stage, depth, lists, folder, row.window)
    if row.asked and adapter is None:
        ask(None, mmlu, folder)
    elif row.asked:
        base = runs / "measured" / "base"
        ask(None, mmlu, base)
        ask(adapter, mmlu, folder, base)


def rank(
    adapter: Path | None, decode: str, first_stage: str, depth: int, lists: Path, folder: Path, window: int
) -> None:
    """Rank the upper part of a first stage's lists of DL 2021 by sliding windows."""
    read = ("--window", str(depth), "--stride", "1") if decode == "likelihood" else sliding(window)
    out = folder / f"dl21.{first_stage}.{depth}"
    _rerank(adapter, f"dl21.{first_stage}", lists, out, "--decode", decode, *read, "--depth", str(depth))


def rank_twice(
    adapter: Path | None, decode: str, first_stage: str, depth: int, lists: Path, folder: Path, window: int = WINDOW
) -> None:
    """Rank it so, too, and its best 20 once more; both from one reading, unless the former is there."""
    slid = folder / f"dl21.{first_stage}.{depth}"
    twice = Path(f"{slid}.{TWICE}")
    again = (*sliding(window), "--rounds", "4", "--depth", str(depth))
    _rerank(adapter, f"dl21.{first_stage}", lists, twice, "--decode", decode, *again)
    if not Path(f"{slid}.json").exists():
        before_again(twice, slid, lists / "qrels.dl21.txt")


def sliding(window: int) -> tuple[str, ...]:
    """Windows that move by half of what they hold."""
    return ("--window", str(window), "--stride", str(window // 2))


def before_again(twice: Path, slid: Path, qrels: Path) -> None:
    """Of lists that were read twice, what sliding had made of them: run, choices and figures. Below the upper 20 the
    order is not that of sliding alone, which makes more choices there; how long that took, nobody has measured."""
    windows = [window for window in ChoicesSource(f"{twice}.choices.jsonl.gz") if not window.dealt]
    slid_over = {own[0].qid: slid_order(own) for own in by_query(windows)}
    below = {qid: [docid for docid, _ in ranking] for qid, ranking in read_run(f"{twice}.run.txt").items()}
    run = {qid: scored(list(dict.fromkeys([*order, *below[qid]]))) for qid, order in slid_over.items()}
    write_run(run, f"{slid}.run.txt", tag="lit-rerank")
    write_choices(windows, f"{slid}.choices.jsonl.gz")
    measures = parse_measures(["nDCG@10", "RR@10"])
    read = json.loads(Path(f"{twice}.json").read_text())
    of_lists = {name: read[name] for name in read if name.startswith("first_stage.") or "queries" in name}
    figures = means(per_query(run, read_qrels(qrels), measures)) | of_lists
    write_figures(figures | {"windows": len(windows), "part_of": twice.name}, f"{slid}.json")


def first_stage_run(first_stage: str, lists: Path, folder: Path) -> Path:
    """The first stage's own run of DL 2021, which is written anew."""
    run = folder / f"{first_stage}.run.txt"
    run.parent.mkdir(parents=True, exist_ok=True)
    records = list(open_candidates(f"{lists}/dl21.{first_stage}.top100.jsonl.gz"))
    write_run(in_first_stage_order(records), run, tag=first_stage)
    return run


def _rerank(adapter: Path | None, candidates: str, lists: Path, out: Path, *reading: str) -> None:
    named = ["--candidates", f"{lists}/{candidates}.top100.jsonl.gz", "--qrels", f"{lists}/qrels.dl21.txt"]
    files = ["--run", f"{out}.run.txt", "--choices", f"{out}.choices.jsonl.gz"]
    options = [*PROMPT, "--dtype", dtype(), *reading]
    evaluate("rerank", Path(f"{out}.json"), *_model(adapter), *named, *files, *options)


def ask(adapter: Path | None, mmlu: Path, folder: Path, base: Path | None = None) -> None:
    """Ask what a model still knows; compared with what the base knew, by the folder of its figures."""
    options = ["--questions", str(mmlu / MMLU), "--limit", str(QUESTIONS), "--text", "shipped"]
    if base is not None:
        options += ["--against", str(base / DETAILS)]
    evaluate("mmlu", folder / "mmlu.json", *_model(adapter), *options, "--dtype", dtype())


def _model(adapter: Path | None) -> list[str]:
    return ["--model", MODEL, *(() if adapter is None else ("--adapter", str(adapter)))]


def evaluate(command: str, metrics: Path, *options: str) -> None:
    """Run a command of `evaluate.py`, unless its figures are there."""
    if not metrics.exists():
        run(command, *options, "--metrics", str(metrics))


def run(command: str, *options: str) -> None:
    """Run a command of `evaluate.py`.

    Raises:
        UserError: if it fails.
    """
    words = ["evaluate.py", command, *options]
    print(f"\n== python {shlex.join(words)}\n", flush=True)
    if subprocess.run([sys.executable, *words]).returncode:
        raise UserError(f"evaluate.py {command} has failed; its message stands above")
