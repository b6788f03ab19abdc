"""What a comparison looks like: each picture drawn once, for PNG files, TensorBoard and the page."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_rerank.comparison.behaviour import Behaviour
from lit_rerank.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each colour stands for a variable of the page's style sheet, which knows light and dark.
INK, MUTED, LINE, BETTER, WORSE, BASELINE = "#1b1f24", "#5d6670", "#d3d8de", "#2a78d6", "#d0552b", "#98a1ab"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BETTER: "better", WORSE: "worse", BASELINE: "baseline"}
NAME_LENGTH = 28
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names are not formulas
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """All pictures are drawn and written in it."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def draw_means(means: Mapping[str, Mapping[str, Any]], baseline: str) -> "Figure":
    """Bars with 95 % intervals: by measure and system `mean` and `interval`."""
    names = list(next(iter(means.values())))
    figure, axes = _grid(len(means), 0.75 + 0.34 * len(names), width=3.8, share_names=True)
    for axis, (measure, systems) in zip(axes, means.items(), strict=False):
        values, intervals = zip(*((systems[name]["mean"], systems[name]["interval"]) for name in names), strict=True)
        ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
        lows, highs = zip(*ends, strict=True)
        colours = [BASELINE if name == baseline else BETTER for name in names]
        axis.barh(range(len(names)), values, 0.62, color=colours)
        arms = whiskers(values, intervals)
        axis.errorbar(values, range(len(names)), xerr=arms, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for place, (value, high) in enumerate(zip(values, highs, strict=True)):
            axis.annotate(f"{value:.3f}", (high, place), (5, 0), textcoords="offset points", va="center", color=INK)
        axis.set(title=measure, xlim=(min(0.0, *lows), 1.18 * max(highs) or 1.0), yticks=range(len(names)))
        axis.set_yticklabels([_short(name) for name in names], color=INK)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(axis="x")
        axis.tick_params(length=0)
    return figure


def whiskers(values: Sequence[float], intervals: Sequence[Interval | None]) -> Any:
    """How far intervals reach below and above their values; no number, which is not drawn, where there is none."""
    import numpy as np

    lows, highs = np.array([interval or (np.nan, np.nan) for interval in intervals]).T
    return np.maximum(0, [values - lows, highs - values])


def draw_deltas(differences: Mapping[str, Sequence[float]], measure: str, baseline: str) -> "Figure":
    """For each system, its queries' differences to the baseline, the largest first."""
    figure, axes = _grid(len(differences), 2.3, width=5.2)
    limit = max((abs(value) for values in differences.values() for value in values), default=0.0) or 1.0
    for axis, (name, values) in zip(axes, differences.items(), strict=False):
        ordered = sorted(values, reverse=True)
        axis.bar(range(len(ordered)), ordered, 0.8, color=[BETTER if value > 0 else WORSE for value in ordered])
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.set(title=f"{_short(name)} less {_short(baseline)}", ylim=(-1.05 * limit, 1.05 * limit))
        axis.set(xlabel=f"{len(values)} queries, by difference", ylabel=f"difference in {measure}", xticks=[])
        axis.spines["bottom"].set_visible(False)
        axis.grid(axis="y")
        axis.tick_params(length=0)
    return figure


def draw_reliability(behaviours: Mapping[str, Behaviour]) -> "Figure":
    """For each system, how often choices of a probability are right, above how many there are."""
    figure, axes = _grid(2 * len(behaviours), (3.0, 1.1), width=3.4)
    above, below = axes[: len(behaviours)], axes[len(behaviours) :]
    for upper, lower, (name, shown) in zip(above, below, behaviours.items(), strict=True):
        full = [b for b in shown.reliability if b.count]
        upper.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1, label="as right as sure")
        upper.plot([b.confidence for b in full], [b.accuracy for b in full], "o-", color=BETTER, markersize=5)
        upper.set(title=_short(name), xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        upper.legend(loc="upper left", labelcolor=MUTED)
        lower.bar([b.low for b in full], [b.count for b in full], 0.092, align="edge", color=BASELINE)
        lower.set(xlim=(0, 1), xlabel="probability of the choice", ylabel="choices")
        for axis in (upper, lower):
            axis.grid()
            axis.tick_params(length=0)
    return figure


def draw_positions(behaviours: Mapping[str, Behaviour]) -> "Figure":
    """For each system, steps x input positions: the share of windows whose pick at that step stood there."""
    from matplotlib.colors import ListedColormap, to_rgb

    levels = 20
    colours = ListedColormap([(*to_rgb(BETTER), level / (levels - 1)) for level in range(levels)])
    figure, axes = _grid(len(behaviours), 3.3, width=4.4)
    for axis, (name, shown) in zip(axes, behaviours.items(), strict=False):
        steps, places = len(shown.positions), max(map(len, shown.positions), default=0)
        axis.set(title=_short(name), xlabel="input position", ylabel="step")
        if not steps:
            continue
        top = max(map(max, shown.positions))
        edges = ([0.5 + place for place in range(places + 1)], [0.5 + step for step in range(steps + 1)])
        mesh = axis.pcolormesh(*edges, shown.positions, cmap=colours, vmin=0, vmax=top, snap=True)
        axis.set(xlim=(0.5, places + 0.5), ylim=(steps + 0.5, 0.5))
        axis.set(xticks=_ticks(places), yticks=_ticks(steps))
        axis.tick_params(length=0)
        if places * steps <= 64:
            for step, row in enumerate(shown.positions, start=1):
                for place, share in enumerate(row, start=1):
                    axis.text(
                        place, step, f"{share:.0%}" if share >= 0.005 else "", ha="center", va="center", fontsize=8
                    )
        bar = figure.colorbar(mesh, ax=axis, format=lambda share, _: f"{share:.0%}", shrink=0.9, aspect=25)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_label("share of windows", color=MUTED)
    return figure


def as_svg(figure: "Figure", name: str) -> str:
    """The picture as an `<svg>` element for the page: its colours are the page's, its text is escaped.

    Args:
        name: of the picture, unlike any other's on the page.
    """
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    # What is not drawn: labels once more as comments, metadata, and rules that would hold for the whole page.
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", written.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])  # figure_1, in each of them
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _grid(count: int, height: float | tuple[float, float], width: float, share_names: bool = False) -> Any:
    """A figure and at least `count` axes: side by side where they are few; two rows where there are two heights."""
    from matplotlib.figure import Figure

    if isinstance(height, tuple):
        columns, rows, heights = count // 2, 2, list(height)
    else:
        columns = min(count, 2 if width > 4 else 3)
        rows = math.ceil(count / columns)
        heights = [height] * rows
    figure = Figure(figsize=(max(width * columns, 4.0), sum(heights)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if share_names else False, height_ratios=heights)
    flat: list[Axes] = list(axes.flat)
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, flat


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _ticks(n: int) -> list[int]:
    return list(range(1, n + 1)) if n <= 10 else [1, *range(5, n + 1, 5)]
