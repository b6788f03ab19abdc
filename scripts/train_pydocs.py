"""`make train-pydocs`: SFT on pydocs for hours, after pointing practice and without it.

The learning curves of both land in runs/train-pydocs: does the model pass BM25, and after how many windows? Called
again, it keeps what is complete and continues what was stopped.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from data_modules.sources import SearchedSource
from lit_rerank.cli import in_one_line
from lit_rerank.evaluation.rerank import in_first_stage_order
from lit_rerank.measures import means, parse_measure, per_query
from scripts.recipes import curve, go_on, windows_seen

RUNS = Path("runs/train-pydocs")
MEASURE = "nDCG@10"


def main() -> None:
    go_on("pydocs.pointing", RUNS / "pointing")
    runs = {"with practice": RUNS / "with_practice", "without": RUNS / "without_practice"}
    go_on("pydocs.hours", runs["with practice"])
    report(runs)
    go_on("pydocs.hours", runs["without"], without="--model.init_args.backbone.adapter")
    report(runs)


def report(runs: Mapping[str, Path]) -> None:
    """The curves so far, as JSON and as a picture."""
    from matplotlib.figure import Figure

    bm25 = first_stage()
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, run in runs.items():
        if not curve(run, f"val/{MEASURE}"):
            continue
        before = windows_seen(RUNS / "pointing")[-1][1] if name == "with practice" else 0
        seen = dict(windows_seen(run))
        for axis, figure_name in zip(axes, (f"val/{MEASURE}", "val/choice_loss"), strict=True):
            points = [(before + seen[step], value) for step, value in curve(run, figure_name)]
            curves.setdefault(name, {})[figure_name] = points
            axis.plot(*zip(*points, strict=True), "o-", label=name)
            axis.set(xlabel="windows seen", title=figure_name)
    axes[0].axhline(bm25, color="grey", linestyle=":", label="BM25's own order")
    axes[0].legend()
    axes[1].legend()
    figure.savefig(RUNS / "learning_curves.png", dpi=120)
    (RUNS / "curves.json").write_text(json.dumps({"bm25": bm25, **curves}, indent=2) + "\n")
    print(f"curves: {RUNS}/learning_curves.png and curves.json; BM25's {MEASURE}: {bm25:.4f}", flush=True)


def first_stage() -> float:
    """BM25's own order of the lists that validation reranks."""
    records = list(SearchedSource("pydocs/val", depth=8))
    qrels = {record.qid: record.qrels or {} for record in records}
    return means(per_query(in_first_stage_order(records), qrels, [parse_measure(MEASURE)]))[MEASURE]


if __name__ == "__main__":
    in_one_line(main)
