"""What the logs of `make results`' trainings say: what each took, and how it learned."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import yaml

from scripts.recipes import curve
from scripts.rows import TRAININGS, Training, all_before

LAST = 10  # steps, over which losses are averaged
SMOOTHED = 20  # steps, in curves


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


def over_guessing(run: Path) -> list[tuple[int, float]]:
    """(last step, choice loss as a share of guessing's) of each SMOOTHED steps; 1: nothing is known."""
    loss, guessing = (dict(curve(run, f"train/{name}")) for name in ("choice_loss", "no_skill"))
    steps = sorted(loss)
    groups = [steps[first : first + SMOOTHED] for first in range(0, len(steps), SMOOTHED)]
    return [(some[-1], sum(loss[step] for step in some) / sum(guessing[step] for step in some)) for some in groups]


def read_until(training: str, steps: Sequence[int], runs: Path) -> list[float]:
    """How many tokens the model has read by the end of each of a training's steps, practice included."""
    before, tokens = read_before(training, runs), tokens_of(runs / training)
    return [before + sum(count for at, count in tokens.items() if at <= step) for step in steps]


def read_before(training: str, runs: Path) -> float:
    """How many tokens those have read that a training starts from, each once; nan where one was not logged."""
    earlier = [name for name in all_before(training) if isinstance(TRAININGS[name], Training)]
    if not all(is_logged(runs / name) for name in earlier):
        return math.nan
    return float(sum(sum(tokens_of(runs / name).values()) for name in earlier))
