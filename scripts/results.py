"""`make results`: the rows of RESULTS.md, each trained and measured by the commands that it prints.

What is there already is kept, and what was stopped goes on. `make results-chain` makes one row alone, with what it
starts from and what the base knows. Everything lands in runs/results: adapters, runs, metrics, and the table as
summary.json and summary.md.
"""

import argparse
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

from data_modules.sources.base import existing_file
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_qrels, read_run, write_run
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from lit_rerank.evaluation.rerank import in_first_stage_order
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.intervals import bootstrap_interval
from lit_rerank.measurement import Retention
from lit_rerank.measures import parse_measures, per_query
from lit_rerank.paired import flat, paired
from scripts.recipes import curve, dtype, go_on, pays_to_compile
from scripts.rows import DEPTHS, LISTS, ROWS, TRAININGS, Row
from scripts.tables import differences, kept_over_direct, table, trainings
from scripts.trecdl_data import write_data, write_judged

MODEL = "models/smollm2-135m-instruct"
RUNS = Path("runs/results")
READING = ("--max_passage_tokens", "60", "--repeat_identifier", "true")
SLIDING = ("--window", "8", "--stride", "4")
QUESTIONS = 570
MMLU = "test_20_per_subject.jsonl.gz"
DETAILS = "mmlu.details.jsonl"
MADE_OF = "made_of.json"
LAST = 10  # steps, over which losses are averaged
SMOOTHED = 20  # steps, in curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which; by default all")
    for name in ("data", "lists", "cranfield", "mmlu"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {name} (docs/data.md)")
    args = parser.parse_args()
    check_measurable(args.lists, args.mmlu)
    if not all(data_of(name).exists() for name in TRAININGS):
        write_judged(args.lists, RUNS / "data")
        write_data(MODEL, args.data, args.lists, args.cranfield, RUNS / "data")
    failed: UserError | None = None
    try:
        make(args.rows or ROWS, args.lists, args.mmlu)
    except UserError as error:
        failed = error
    summarise(args.lists)
    if failed is not None:
        raise failed


def make(rows: Iterable[str], lists: Path, mmlu: Path) -> None:
    """Train and measure what is not there yet."""
    for name in rows:
        row = ROWS[name]
        if row.training is not None:
            train(row.training, lists)
        measure(name, row, lists, mmlu)


def check_measurable(lists: Path, mmlu: Path) -> None:
    """Raise a UserError that names the first file which measuring needs and is not there."""
    for name in (*(f"dl21.{first_stage}.top100.jsonl.gz" for first_stage in LISTS), "qrels.dl21.txt"):
        existing_file(lists / name)
    existing_file(mmlu / MMLU)


# -- training ------------------------------------------------------------------------------------------------------


def train(name: str, lists: Path) -> None:
    """Run a training after those that it starts from, unless that was done.

    Raises:
        UserError: if it was stopped when it had learned from other data, or from another adapter.
    """
    training, run = TRAININGS[name], RUNS / name
    if (run / "complete").exists():
        if what := different(name):
            print(f"{run} has learned from {what}: it is kept (to train it anew, remove it)", flush=True)
        return  # whatever became of those that it started from
    if training.start is not None:
        train(training.start, lists)
    if what := different(name):
        raise UserError(f"{run} was stopped, and has learned from {what}: to train it anew, remove it")
    options = [*training.options, f"--data.init_args.train.init_args.path={data_of(name)}"]
    if training.recipe == "trecdl.pointing":
        options.append(f"--data.init_args.val.init_args.path={RUNS}/data/pointing.val.jsonl.gz")
    else:
        options += ["--trainer.num_sanity_val_steps=0", *processes()]  # sixteen lists, reranked before the first step
        if "--data.init_args.replay=null" not in options:
            options.append(f"--data.init_args.replay.init_args.path={RUNS}/data/self_taught/replay.jsonl.gz")
        for part in ("val", "candidates") if training.recipe == "trecdl.sft" else ("candidates",):
            options += [
                f"--data.init_args.{part}.init_args.path={lists}/dl21.bm25.top100.jsonl.gz",
                f"--data.init_args.{part}.init_args.qrels={lists}/qrels.dl21.txt",
            ]
    if pays_to_compile():
        options.append("--model.init_args.backbone.compile=true")
    if training.start is not None:
        options.append(f"--model.init_args.backbone.adapter={RUNS / training.start}/adapter")
    for row in (row for row in ROWS if ROWS[row].training == name and (RUNS / "measured" / row).exists()):
        print(f"{RUNS}/measured/{row} is of an earlier adapter: it is removed", flush=True)
        shutil.rmtree(RUNS / "measured" / row)
    run.mkdir(parents=True, exist_ok=True)
    (run / MADE_OF).write_text(json.dumps(made_of(name), indent=2) + "\n")
    go_on(training.recipe, run, *options)


def processes() -> tuple[str, ...]:
    """Without a GPU, a process for each of two cores, which read as much together as the recipe on one device."""
    import torch

    if torch.cuda.is_available():
        return ()
    options = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "data.init_args.batch_size=4")
    return tuple(f"--{option}" for option in options)


def data_of(training: str) -> Path:
    """The file that a training learns from."""
    return RUNS / "data" / f"{TRAININGS[training].data}.jsonl.gz"


def made_of(training: str) -> dict[str, str]:
    """The SHA-256 of what a training learns from, and of the adapter that it starts from."""
    start = TRAININGS[training].start
    files = {"data": data_of(training)}
    if start is not None:
        files["weights"] = RUNS / start / "adapter" / "adapter_model.safetensors"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.exists()}


def different(training: str) -> str:
    """What a training that has begun was made of and is there no more as it was; "" where nothing is known."""
    path = RUNS / training / MADE_OF
    now = made_of(training)
    before = read(path) if path.exists() else {}
    return " and ".join(f"other {name}" for name in before if now.get(name, before[name]) != before[name])


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(name: str, row: Row, lists: Path, mmlu: Path) -> None:
    """Rank both lists to both depths, and ask what the model still knows; what is measured is not measured again."""
    folder = RUNS / "measured" / name
    adapter = None if row.training is None else RUNS / row.training / "adapter"
    for first_stage in LISTS:
        for depth in row.depths:
            rank(adapter, row.decode, first_stage, depth, lists, folder)
    if row.asked and adapter is None:
        ask(None, mmlu, folder)
    elif row.asked:
        base = RUNS / "measured" / "base"
        ask(None, mmlu, base)
        ask(adapter, mmlu, folder, base)


def rank(adapter: Path | None, decode: str, first_stage: str, depth: int, lists: Path, folder: Path) -> None:
    """Rank the upper part of a first stage's lists of DL 2021."""
    out = folder / f"dl21.{first_stage}.{depth}"
    sliding = SLIDING if decode != "likelihood" else ("--window", str(depth), "--stride", "1")
    candidates = f"{lists}/dl21.{first_stage}.top100.jsonl.gz"
    files = ["--run", f"{out}.run.txt", "--choices", f"{out}.choices.jsonl.gz"]
    asked = ["--candidates", candidates, "--qrels", f"{lists}/qrels.dl21.txt", "--decode", decode]
    options = [*READING, "--dtype", dtype(), *sliding, "--depth", str(depth)]
    evaluate("rerank", Path(f"{out}.json"), *_model(adapter), *asked, *files, *options)


def ask(adapter: Path | None, mmlu: Path, folder: Path, base: Path | None = None) -> None:
    """Ask what a model still knows; compared with what the base knew, by the folder of its figures."""
    options = ["--questions", str(mmlu / MMLU), "--limit", str(QUESTIONS), "--text", "shipped"]
    if base is not None:
        options += ["--against", str(base / DETAILS)]
    evaluate("mmlu", folder / "mmlu.json", *_model(adapter), *options, "--dtype", dtype())


def _model(adapter: Path | None) -> list[str]:
    return ["--model", MODEL, *(() if adapter is None else ("--adapter", str(adapter)))]


def evaluate(command: str, metrics: Path, *options: str) -> None:
    """Run `evaluate.py`, unless its figures are there."""
    if metrics.exists():
        return
    words = ["evaluate.py", command, *options, "--metrics", str(metrics)]
    print(f"\n== python {shlex.join(words)}\n", flush=True)
    if subprocess.run([sys.executable, *words]).returncode:
        raise UserError(f"evaluate.py {command} has failed; its message stands above")


# -- the table -----------------------------------------------------------------------------------------------------


def summarise(lists: Path) -> None:
    """What is measured so far, compared with the first stage and with direct SFT: summary.json, .md and pictures."""
    compared = {
        f"{first_stage}.{depth}": compare(first_stage, depth, lists) for first_stage in LISTS for depth in DEPTHS
    }
    kept = {name: retained(name) for name in ROWS if (RUNS / "measured" / name / "mmlu.json").exists()}
    trained = {name: cost(RUNS / name) for name in TRAININGS if is_logged(RUNS / name)}
    summary = {"ranking": compared, "retention": kept, "training": trained}
    (RUNS / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    to_tensorboard(str(RUNS), "results", summary)
    tables = [table(compared, kept), differences(compared), kept_over_direct(kept), trainings(trained)]
    (RUNS / "summary.md").write_text("\n".join(table for table in tables if table.count("\n") > 2))
    draw_trade_off(compared, kept)
    draw_curves(name for name in trained if name not in ROWS or ROWS[name].depths)
    print(f"\n{(RUNS / 'summary.md').read_text()}\nfigures: {RUNS}/summary.json   pictures: {RUNS}/*.png")


def compare(first_stage: str, depth: int, lists: Path) -> dict[str, Any]:
    """nDCG@10 of each row that has ranked so much, and `evaluate.py compare`'s tests against the first stage and direct
    SFT."""
    candidates = f"{lists}/dl21.{first_stage}.top100.jsonl.gz"
    own = RUNS / "measured" / f"{first_stage}.run.txt"
    own.parent.mkdir(parents=True, exist_ok=True)
    write_run(in_first_stage_order(list(open_candidates(candidates))), own, tag=first_stage)
    ranked = {name: RUNS / "measured" / name / f"dl21.{first_stage}.{depth}" for name in ROWS}
    runs = {name: Path(f"{path}.run.txt") for name, path in ranked.items() if Path(f"{path}.json").exists()}
    if not runs:
        return {first_stage: mean_of(own, lists / "qrels.dl21.txt")}
    named = [f"{first_stage}={own}", *(f"{name}={path}" for name, path in runs.items())]
    found: dict[str, Any] = {}
    for baseline in (first_stage, "direct"):
        if baseline not in (first_stage, *runs):
            continue
        metrics = RUNS / "compared" / f"{first_stage}.{depth}.{baseline}.json"
        metrics.unlink(missing_ok=True)  # another row may have come
        choices = [
            f"--choices+={name}={path.with_name(path.name.replace('run.txt', 'choices.jsonl.gz'))}"
            for name, path in runs.items()
        ]
        options = ["--qrels", f"{lists}/qrels.dl21.txt", "--baseline", baseline, "--candidates", candidates, *choices]
        evaluate("compare", metrics, *named, *options)
        result = read(metrics)
        if not found:
            found = {name: system["means"]["nDCG@10"] for name, system in result["systems"].items()}
        for one in result["comparisons"]:
            if one["measure"] == "nDCG@10":
                found[one["system"]][f"over_{baseline}"] = {
                    k: one[k] for k in ("difference", "interval", "p", "p_corrected")
                }
    return found


def mean_of(run: Path, qrels: Path) -> dict[str, Any]:
    """nDCG@10 of a run that is compared with none."""
    scores = per_query(read_run(run), read_qrels(qrels), parse_measures(["nDCG@10"]))
    values = [query["nDCG@10"] for query in scores.values()]
    return {"mean": fmean(values), "interval": bootstrap_interval(values)}


def retained(name: str) -> dict[str, Any]:
    """What a row still knows, and how much more of it than the base and than direct SFT: question by question."""
    own = Retention.load(RUNS / "measured" / name / DETAILS)
    figures = own.figures()
    for over, prefix in (("base", ""), ("direct", "over_direct.")):
        details = RUNS / "measured" / over / DETAILS
        if details.exists() and name not in ("base", over):
            differences = flat(paired(Retention.load(details), own))
            figures |= {f"{prefix}{figure}": value for figure, value in differences.items()}
    return figures


def is_logged(run: Path) -> bool:
    """Whether a training is complete, and what it logged is there: an adapter may have come without."""
    return (run / "complete").exists() and (run / "metrics.jsonl").exists()


def cost(run: Path) -> dict[str, float]:
    """What a training took: steps, tokens that the policy has read, minutes without validation; and what it learned:
    the choice loss of its first and last steps, and what guessing has there."""
    tokens = tokens_of(run)
    own, rates, loss, guessing = (
        dict(curve(run, f"train/{name}")) for name in ("tokens", "tokens_per_s", "choice_loss", "no_skill")
    )
    seconds = sum(own[step] / rates[step] for step in own)
    took = {"steps": len(tokens), "tokens": sum(tokens.values()), "minutes": round(seconds / 60, 1)}
    ends = {"first": sorted(loss)[:LAST], "last": sorted(loss)[-LAST:]} if loss else {}  # preferences have none
    for part, steps in ends.items():
        took[f"choice_loss.{part}"] = fmean(loss[step] for step in steps)
        took[f"guessing.{part}"] = fmean(guessing[step] for step in steps)
    return took


def tokens_of(run: Path) -> dict[int, float]:
    """How many tokens each step has read. A process logs its own; what the others read is taken to be as much."""
    processes = int(yaml.safe_load((run / "config.yaml").read_text())["trainer"]["devices"])
    return {step: processes * tokens for step, tokens in curve(run, "train/tokens")}


def draw_trade_off(compared: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]]) -> None:
    """Ranking against what is still known: right and up is better."""
    ranking = compared["bm25.20"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure in zip(axes, ("answer_logprob", "bits_per_byte"), strict=True):
        for name in (row for row in ROWS if row in kept and row in ranking):
            ranked, change = ranking[name], f"difference.{measure}"
            x = kept[name].get(change, 0.0)
            ends = [kept[name].get(f"{change}.{end}", 0.0) for end in ("low", "high")]
            axis.errorbar(
                x,
                ranked["mean"],
                xerr=[[x - ends[0]], [ends[1] - x]],
                yerr=[[ranked["mean"] - ranked["interval"][0]], [ranked["interval"][1] - ranked["mean"]]],
                fmt="o",
                label=ROWS[name].title,
            )
        axis.axhline(ranking["bm25"]["mean"], color="grey", linestyle=":", label="BM25's own order")
        axis.set(xlabel=f"{measure}: change from the base", ylabel="nDCG@10, DL 2021, BM25's top 20")
    axes[1].invert_xaxis()  # fewer bits are better
    axes[0].legend(fontsize=8)
    figure.savefig(RUNS / "trade_off.png", dpi=120)


def draw_curves(trained: Iterable[str]) -> None:
    """How the models learn, over all tokens that they have read, practice included: the choice loss of training, and
    nDCG@10 of BM25's top 20 of DL 2021 where it was watched."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in trained:
        for axis, points in zip(axes, (over_guessing(RUNS / name), curve(RUNS / name, "val/nDCG@10")), strict=True):
            read = read_until(name, [step for step, _ in points])
            if points and not math.isnan(read[0]):
                axis.plot(read, [value for _, value in points], ".-", label=name)
    axes[0].set(xlabel="tokens read", ylabel="choice loss over that of guessing")
    axes[1].set(xlabel="tokens read", ylabel="nDCG@10, DL 2021, BM25's top 20")
    for axis in (axis for axis in axes if axis.lines):
        axis.legend()
    figure.savefig(RUNS / "learning_curves.png", dpi=120)


def over_guessing(run: Path) -> list[tuple[int, float]]:
    """(last step, choice loss as a share of guessing's) of each SMOOTHED steps; 1: nothing is known."""
    loss, guessing = (dict(curve(run, f"train/{name}")) for name in ("choice_loss", "no_skill"))
    steps = sorted(loss)
    groups = [steps[first : first + SMOOTHED] for first in range(0, len(steps), SMOOTHED)]
    return [(some[-1], sum(loss[step] for step in some) / sum(guessing[step] for step in some)) for some in groups]


def read_until(training: str, steps: Sequence[int]) -> list[float]:
    """How many tokens the model has read by the end of each of a training's steps, practice included."""
    before, tokens = read_before(training), tokens_of(RUNS / training)
    return [before + sum(count for at, count in tokens.items() if at <= step) for step in steps]


def read_before(training: str) -> float:
    """How many tokens those have read that a training starts from, one after the other; nan where it was not logged."""
    start = TRAININGS[training].start
    if start is None:
        return 0.0
    return read_before(start) + sum(tokens_of(RUNS / start).values()) if is_logged(RUNS / start) else math.nan


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


if __name__ == "__main__":
    in_one_line(main)
