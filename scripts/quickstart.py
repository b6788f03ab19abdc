"""`make quickstart`: teach the small LLM to rank, from pointing practice to DPO, and see what it has learned.

The trainings are the recipes configs/recipes/pydocs.*.yaml by the commands that these open with. Everything lands in
runs/quickstart.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_modules.records import RankingRecord, Window
from data_modules.sources import JudgedSource, SearchedSource
from data_modules.trec import write_run
from lit_rerank.as_trained import load_prompt_settings
from lit_rerank.cli import in_one_line
from lit_rerank.decoder import Decoder
from lit_rerank.errors import UserError
from lit_rerank.evaluation.rerank import in_first_stage_order, with_progress
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.generation import Generate
from lit_rerank.intervals import bootstrap_interval
from lit_rerank.means import Means
from lit_rerank.measures import parse_measure, per_query
from lit_rerank.reading import SlidingWindow
from lit_rerank.reranker import Reranker
from scripts.recipes import curve, dtype, pays_to_compile, start_anew, train

MODEL = "models/smollm2-135m-instruct"
RUNS = Path("runs/quickstart")
SHIPPED = Path("adapters/smollm2-135m-chain")  # taught on TREC DL
STAGES = ("pointing", "sft", "dpo")
SLIDING = SlidingWindow(window=5, stride=3, depth=8)
MEASURES = ("nDCG@10", "RR@10")
SEED = 0


def main() -> None:
    started = time.perf_counter()
    start_anew(RUNS)
    compiles = pays_to_compile()
    for stage in STAGES:
        compiles = trained(stage, compiles)
    records = list(SearchedSource("pydocs/test", depth=SLIDING.depth))
    windows = [Window.of(r, range(len(r.passages))) for r in JudgedSource("pydocs/val", 96, 5, 5)]
    systems = {"first_stage": ranking_figures("first_stage", in_first_stage_order(records), records)}
    adapters = {"base": None, "sft": RUNS / "sft/adapter", "dpo": RUNS / "dpo/adapter", "shipped": SHIPPED}
    for name, adapter in adapters.items():
        systems[name] = evaluate(name, adapter, records, windows)
    seconds = round(time.perf_counter() - started)
    summary = {**systems, "queries": len(records), "seconds": seconds}
    (RUNS / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_curves(RUNS / "learning_curves.png")
    to_tensorboard(str(RUNS), "quickstart", systems)
    show(systems, seconds)


def trained(stage: str, compiles: bool) -> bool:
    """Train a stage, without torch.compile where that fails; whether it was compiled."""
    if compiles:
        try:
            train(f"pydocs.{stage}", RUNS, "--model.init_args.backbone.compile=true")
        except UserError:
            print(f"{stage} has failed with torch.compile: once more, without", flush=True)
        else:
            return True
    train(f"pydocs.{stage}", RUNS)
    return False


def evaluate(
    name: str, adapter: Path | None, records: Sequence[RankingRecord], windows: Sequence[Window]
) -> dict[str, Any]:
    """All figures of one model; its run is written."""
    from lit_rerank.retention import mmlu_smoke

    print(f"\n== evaluation: {name}\n", flush=True)
    prompt = load_prompt_settings(adapter or RUNS / "sft/adapter")  # the base model is asked as SFT is
    reranker = Reranker.from_pretrained(
        MODEL,
        None if adapter is None else str(adapter),
        format=prompt.format,
        max_passage_tokens=prompt.max_passage_tokens,
        repeat_identifier=prompt.repeat_identifier,
        reading=SLIDING,
        dtype=dtype(),
    )
    rankings = with_progress([record.shuffled(SEED) for record in records], reranker)
    assert isinstance(reranker.decoder, Decoder)
    model, encoder = reranker.decoder.model, reranker.decoder.encoder
    generated = Generate(model, encoder)(windows)
    return {
        **ranking_figures(name, {ranking.record.qid: ranking.run for ranking in rankings}, records),
        "malformed_generate": sum(decoded.malformed for decoded in generated) / len(generated),
        "generated_windows": len(generated),
        **choice_figures(model, encoder, windows),
        "mmlu_smoke": mmlu_smoke(model, encoder.chat.tokenizer)["acc"],
    }


def ranking_figures(
    name: str, run: Mapping[str, Sequence[tuple[str, float]]], records: Sequence[RankingRecord]
) -> dict[str, Any]:
    write_run(run, RUNS / f"{name}.run.txt", tag=name)
    scores = per_query(run, {r.qid: r.qrels or {} for r in records}, [parse_measure(m) for m in MEASURES])
    columns = {measure: [query[measure] for query in scores.values()] for measure in MEASURES}
    return {
        **{measure: sum(values) / len(values) for measure, values in columns.items()},
        "nDCG@10_interval": bootstrap_interval(columns["nDCG@10"]),
    }


def choice_figures(model: Any, encoder: Any, windows: Sequence[Window]) -> dict[str, float]:
    """Means over windows: loss of the first choice among the identifiers, beside that of guessing."""
    import torch

    from lit_rerank.scoring import token_logps
    from lit_rerank.targets import SFTTargets

    means = Means()
    for start in range(0, len(windows), 16):
        batch = [encoder.encode(window) for window in windows[start : start + 16]]
        targets = SFTTargets.build(batch, model.device)
        with torch.no_grad():
            loss = targets.loss(token_logps(model, targets.packed))
        figures: dict[str, Any] = {
            "choice_loss": loss.choice,
            "no_skill": targets.no_skill,
            "choice_accuracy": loss.accuracy,
        }
        for name, value in figures.items():
            means.add(name, value, len(batch))
    return {name: mean for name, (mean, _) in means.collect().items()}


def draw_curves(path: Path) -> None:
    """What each training learned, step by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, stage in zip(axes, STAGES, strict=True):
        names = ("choice_loss", "no_skill") if stage != "dpo" else ("rewards/accuracy",)
        for name in names:
            for split, style in (("train", "-"), ("val", "o--")):
                points = curve(RUNS / stage, f"{split}/{name}")
                if points and not (name == "no_skill" and split == "train" and stage == "sft"):
                    axis.plot(*zip(*points, strict=True), style, label=f"{split}/{name}", alpha=0.8)
        axis.set(title=stage, xlabel="optimizer steps", ylim=(0, None))
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def show(systems: Mapping[str, Mapping[str, Any]], seconds: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    no_skill = next(row["no_skill"] for row in systems.values() if "no_skill" in row)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=(
            f"pydocs/test, BM25's top {SLIDING.depth} in random order (first_stage: in its own); shipped: {SHIPPED}, "
            f"taught on TREC DL. {seconds / 60:.0f} minutes in all. The choice loss of guessing is {no_skill:.3f}. So "
            "short a training shows that the model learns to find the passage that answers. It does not show which "
            "method ranks best: the intervals are wide, the questions few and the model small."
        ),
    )
    for heading in ("", "nDCG@10", "95 %", "RR@10", "malformed", "choice loss", "MMLU"):
        table.add_column(heading, no_wrap=True)
    for name, row in systems.items():
        low, high = row["nDCG@10_interval"]
        cells = [name, f"{row['nDCG@10']:.3f}", f"{low:.2f} - {high:.2f}", f"{row['RR@10']:.3f}"]
        if "choice_loss" in row:
            cells += [f"{row['malformed_generate']:.1%}", f"{row['choice_loss']:.3f}", f"{row['mmlu_smoke']:.3f}"]
        table.add_row(*cells)
    Console().print(table)
    print(
        f"""
Figures: {RUNS}/summary.json   curves: {RUNS}/learning_curves.png   runs: {RUNS}/*.run.txt

What next?
  make tensorboard                                   the curves of the three trainings
  .venv/bin/python evaluate.py rerank --model {MODEL} --adapter {RUNS}/dpo/adapter \\
      --first_stage bm25 --collection pydocs/test --depth 8 --window 5 --stride 3 --shuffle 0 --dtype {dtype()} \\
      --run my.run.txt --metrics my.json
  make test                                          prove the installation
  make train-pydocs                                  the same for hours
Your own data and one GPU: README.md"""
    )


if __name__ == "__main__":
    in_one_line(main)
