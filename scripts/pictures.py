"""The pictures of `make results`."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts.learning import over_guessing, read_until
from scripts.recipes import curve
from scripts.rows import ROWS


def draw_trade_off(compared: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]], path: Path) -> None:
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
    figure.savefig(path, dpi=120)


def draw_curves(trained: Iterable[str], runs: Path, path: Path) -> None:
    """How the models learn, over all tokens that they have read, practice included: the choice loss of training, and
    nDCG@10 of BM25's top 20 of DL 2021 where it was watched."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in trained:
        for axis, points in zip(axes, (over_guessing(runs / name), curve(runs / name, "val/nDCG@10")), strict=True):
            read = read_until(name, [step for step, _ in points], runs)
            if points and not math.isnan(read[0]):
                axis.plot(read, [value for _, value in points], ".-", label=name)
    axes[0].set(xlabel="tokens read", ylabel="choice loss over that of guessing")
    axes[1].set(xlabel="tokens read", ylabel="nDCG@10, DL 2021, BM25's top 20")
    for axis in (axis for axis in axes if axis.lines):
        axis.legend()
    figure.savefig(path, dpi=120)
