"""Whether a system is better than another: a paired randomisation test over queries, corrected for many of them.

The test (Fisher 1935; for retrieval, Smucker et al. 2007) asks how often the mean difference would be as large if each
query's two values could as well belong to the other system. So it supposes that, where there is no difference between
the systems, those of queries are as likely to be positive as negative, of any size (symmetric about 0); it does not
suppose that they are normally distributed: they are bounded, many of them 0 and some large. It is exact for up to 16
queries; above, 99,999 random draws, the same each time.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lit_rerank.intervals import Interval, student_interval

RESAMPLES = 99_999
BATCH = 5_000_000  # signs drawn at a time
TOLERANCE = 1e-9  # values that differ by less are equal: they were summed up in another order


@dataclass(frozen=True)
class Paired:
    """A system beside the baseline, over queries that both are measured on.

    Attributes:
        difference: mean over queries of the system's value less the baseline's.
        interval: its 95 % interval, Student's: the bootstrap's is too narrow where nearly all differences are 0. None
            of one query.
        wins, ties, losses: queries where the system is better, equal, worse.
        effect_size: Cohen's d of paired values: the mean difference in standard deviations of the differences; None
            where they vary by rounding alone but are not 0 either.
        p: two-sided, of the randomisation test.
    """

    difference: float
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    effect_size: float | None
    p: float


def differences(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Each query's value less the baseline's; 0 where they differ by nothing but rounding."""
    return [
        0.0 if math.isclose(own, other, rel_tol=0, abs_tol=TOLERANCE) else own - other
        for own, other in zip(values, baseline, strict=True)
    ]


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two systems; a value of each for every query."""
    found = differences(values, baseline)
    wins, losses = sum(value > 0 for value in found), sum(value < 0 for value in found)
    return Paired(
        difference=statistics.fmean(found),
        interval=student_interval(found),
        wins=wins,
        ties=len(found) - wins - losses,
        losses=losses,
        effect_size=_effect_size(found),
        p=randomisation_test(found),
    )


def randomisation_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of a mean difference."""
    import numpy as np
    from scipy.stats import permutation_test

    if len(differences) < 2:
        return 1.0  # one query has two signs, and both are as extreme
    found = permutation_test(
        (np.array(differences),),
        lambda values, axis: np.round(np.mean(values, axis=axis), 12),  # means that are equal shall compare so
        permutation_type="samples",  # signs, where there is one sample
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(differences)),
        rng=0,
    )
    return float(found.pvalue)


def corrected(ps: Sequence[float]) -> list[float]:
    """P-values for which calling those below a level significant makes that share of false ones at most, on average
    (Benjamini and Hochberg 1995).

    That is proven for tests that are independent or depend on each other positively (Benjamini and Yekutieli 2001). Of
    two-sided tests on one baseline, by measures that are alike, it is not: take it as an approximation.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(list(ps), method="bh")]


def show_p(p: float) -> str:
    """A p-value to four decimals, none of them as 0."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _effect_size(differences: Sequence[float]) -> float | None:
    if not any(differences):
        return 0.0
    deviation = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return statistics.fmean(differences) / deviation if deviation > TOLERANCE else None
