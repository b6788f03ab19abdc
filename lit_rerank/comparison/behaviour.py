"""What a reranker's choices show: whether it is as right as it is sure, and where in the window it picks from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp

from data_modules.choices import WindowChoices
from lit_rerank.comparison.windows import by_query, in_parts

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Choices that were about as probable.

    Attributes:
        low, high: the probabilities that fall into it (`high` is outside, except for 1).
        count: choices.
        confidence: mean probability; None where there are none.
        accuracy: share of right ones; None where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Behaviour:
    """One system's choices.

    Attributes:
        windows: that were read.
        malformed: windows whose answer needed repair; they are left out.
        judged_choices: choices with a known probability of which a judgement says whether they are right, in windows
            that were read in one way (see `in_one_way`).
        accuracy, confidence: share of right ones and mean probability of these choices; None without any.
        calibration_error: mean distance of the two over the bins, weighted by their choices (ECE, Guo et al. 2017).
        reliability: the bins.
        positions: at each step, the share of fresh windows in which the passage at each input position was picked
            (see `fresh`).
        step_windows: how many fresh windows have each step.
    """

    windows: int
    malformed: int
    judged_choices: int
    accuracy: float | None
    confidence: float | None
    calibration_error: float | None
    reliability: tuple[Bin, ...]
    positions: tuple[tuple[float, ...], ...]
    step_windows: tuple[int, ...]


def behaviour(windows: Sequence[WindowChoices], qrels: Mapping[str, Mapping[str, int]]) -> Behaviour:
    """What the choices of a system's windows show."""
    whole = [window for window in in_one_way(windows) if not window.malformed]
    choices = [choice for window in whole for choice in judged_choices(window, qrels.get(window.qid, {}))]
    bins = reliability(choices)
    positions, step_windows = picked_positions([window for window in fresh(windows) if not window.malformed])
    n = len(choices)
    return Behaviour(
        windows=len(windows),
        malformed=sum(window.malformed for window in windows),
        judged_choices=n,
        accuracy=sum(right for _, right in choices) / n if n else None,
        confidence=sum(p for p, _ in choices) / n if n else None,
        calibration_error=sum(b.count / n * abs((b.accuracy or 0) - (b.confidence or 0)) for b in bins) if n else None,
        reliability=bins,
        positions=positions,
        step_windows=step_windows,
    )


def in_one_way(windows: Sequence[WindowChoices]) -> Iterator[WindowChoices]:
    """Of lists that were read twice the windows that slid over them; of others, all."""
    for own in by_query(windows):
        slid, dealt = in_parts(own)
        yield from slid or dealt


def fresh(windows: Sequence[WindowChoices]) -> Iterator[WindowChoices]:
    """Windows whose passages no window before has ordered: of those that slid over a list the first, else all of
    rounds.

    Later ones hold at their end what the window before has ordered: a good order, whose picks stand at its beginning.
    """
    for own in by_query(windows):
        slid, dealt = in_parts(own)
        yield from slid[:1] or dealt


def judged_choices(window: WindowChoices, grades: Mapping[str, int]) -> Iterator[tuple[float, bool]]:
    """How probable each choice was, and whether it was right: of the highest grade that remained.

    Passages without a judgement count as grade 0. A choice among passages of one grade says nothing and is left out.
    """
    if window.logps is None:
        return
    order = [grades.get(window.docids[identifier - 1], 0) for identifier in window.permutation]
    for step in range(window.choices):
        remaining = order[step:]
        if min(remaining) < max(remaining):
            yield min(1.0, exp(window.logps[step])), order[step] == max(remaining)


def reliability(choices: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    """Choices in ten bins of equal width, by their probability."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, right in choices:
        members[min(BINS - 1, int(p * BINS))].append((p, right))
    return tuple(
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=len(own),
            confidence=sum(p for p, _ in own) / len(own) if own else None,
            accuracy=sum(right for _, right in own) / len(own) if own else None,
        )
        for number, own in enumerate(members)
    )


def picked_positions(windows: Sequence[WindowChoices]) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    """Steps x input positions, each row's sum 1, and how many windows have each step.

    A step that leaves no choice (the last of a window) is left out.
    """
    size = max((len(window.docids) for window in windows), default=0)
    counts = [[0] * size for _ in range(size)]
    for window in windows:
        for step in range(min(window.choices, len(window.docids) - 1)):
            counts[step][window.permutation[step] - 1] += 1
    rows = [row for row in counts if any(row)]
    return tuple(tuple(count / sum(row) for count in row) for row in rows), tuple(map(sum, rows))
