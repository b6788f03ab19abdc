"""95 % intervals of means over queries, questions or documents. Of fewer than two there is none: None."""

from collections.abc import Sequence
from typing import Any

Interval = tuple[float, float]

BATCH = 200  # resamples that are in memory at a time
DIGITS = 12  # means that are equal but for rounding shall compare so


def bootstrap_interval(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval | None:
    """Of sum(values) / sum(weights), without weights of the mean: BCa, 9,999 resamples, the same each time."""
    import numpy as np
    from scipy.stats import bootstrap

    weights = [1.0] * len(values) if weights is None else weights
    ratios = np.divide(values, weights)
    if len(ratios) < 2 or _alike(ratios):
        return _of_alike(ratios)

    def ratio(x: Any, w: Any, axis: int = -1) -> Any:
        return np.round(np.sum(x, axis=axis) / np.sum(w, axis=axis), DIGITS)

    statistic: Any = ratio
    found = bootstrap((values, weights), statistic, paired=True, batch=BATCH, rng=0).confidence_interval
    return (float(found.low), float(found.high))


def student_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean, Student's: of few values, or where nearly all are equal, the bootstrap's is too narrow."""
    import numpy as np
    from scipy.stats import ttest_1samp

    found = np.asarray(values, dtype=float)
    if len(found) < 2 or _alike(found):
        return _of_alike(found)
    interval = ttest_1samp(found, 0.0).confidence_interval(0.95)
    return (float(interval.low), float(interval.high))


def show_interval(interval: Sequence[float] | None, form: str, to: str = " to ") -> str:
    """Its ends, each in the format `form`; a dash where there is none."""
    return "-" if interval is None else to.join(format(end, form) for end in interval)


def _alike(values: Any) -> bool:
    """Whether values are numbers that differ by nothing but rounding."""
    import numpy as np

    return bool(np.isfinite(values).all() and np.ptp(values) <= 1e-12 * np.abs(values).max())


def _of_alike(values: Any) -> Interval | None:
    return None if len(values) < 2 else (float(values[0]), float(values[0]))
