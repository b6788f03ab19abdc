"""The pictures of `make results`."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_rerank.comparison.pictures import whiskers
from scripts.learning import over_guessing, read_until
from scripts.recipes import curve
from scripts.rows import ROWS

Logged = Callable[[Path], list[tuple[int, float]]]  # of a run: (step, value)


def draw_trade_off(compared: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]], path: Path) -> None:
    """Ranking against what is still known: right and up is better; a cross is what has learned the answers."""
    ranking = compared["bm25.20"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure in zip(axes, ("answer_logprob", "bits_per_byte"), strict=True):
        for name in (row for row in ROWS if row in kept and row in ranking):
            figures = {"": 0.0, ".low": 0.0, ".high": 0.0} if name == "base" else changes(kept[name], measure)
            if not figures:
                continue
            x, y = figures[""], ranking[name]["mean"]
            axis.errorbar(
                [x],
                [y],
                xerr=whiskers([x], [(figures[".low"], figures[".high"])]),
                yerr=whiskers([y], [ranking[name]["interval"]]),
                fmt="x" if ROWS[name].knows_answers else "o",
                label=ROWS[name].title,
            )
        axis.axhline(ranking["bm25"]["mean"], color="grey", linestyle=":", label="BM25's own order")
        axis.set(xlabel=f"{measure}: change from the base", ylabel="nDCG@10, DL 2021, BM25's top 20")
    axes[1].invert_xaxis()  # fewer bits are better
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)


def changes(kept: dict[str, Any], measure: str) -> dict[str, float]:
    """How a measure has changed from the base, with its interval's ends; nothing where the base is not measured."""
    found = {end: kept.get(f"difference.{measure}{end}") for end in ("", ".low", ".high")}
    return {end: value for end, value in found.items() if value is not None}


def draw_curves(trained: Iterable[str], runs: Path, path: Path) -> None:
    """How the models learn, over all tokens that they have read, practice included: the choice loss of training, and
    nDCG@10 of BM25's top 20 of DL 2021, which has no place where it was not watched."""
    logged: dict[str, Logged] = {
        "choice loss over that of guessing": over_guessing,
        "nDCG@10, DL 2021, BM25's top 20": partial(curve, figure="val/nDCG@10"),
    }
    names = list(trained)
    panels = {label: {name: by_tokens(name, values, runs) for name in names} for label, values in logged.items()}
    drawn = {label: curves for label, curves in panels.items() if any(curves.values())} or panels
    figure = Figure(figsize=(5.5 * len(drawn), 4), layout="constrained")
    for axis, (label, curves) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        for name, found in curves.items():
            if found:
                axis.plot(*zip(*found, strict=True), ".-", label=name)
        axis.set(xlabel="tokens read", ylabel=label)
        if axis.lines:
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(path, dpi=120)


def by_tokens(name: str, values: Logged, runs: Path) -> list[tuple[float, float]]:
    """A figure of a training, by how many tokens were read until then; none where that is not known."""
    found = values(runs / name)
    read = read_until(name, [step for step, _ in found], runs)
    return [(tokens, value) for tokens, (_, value) in zip(read, found, strict=True) if not math.isnan(tokens)]
