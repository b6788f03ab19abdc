"""Reciprocal rank fusion (Cormack et al. 2009)."""

from collections.abc import Sequence
from fractions import Fraction

K = 60


def reciprocal(rankings: Sequence[Sequence[str]], k: int = K) -> list[str]:
    """All docids by the sum of 1 / (k + rank) over the rankings that have them, best first.

    Ranks are counted from 1. Equals stand in the order of the first ranking that has them.
    """
    sums: dict[str, Fraction] = {}  # exact: else who is equal would depend on the order of the runs
    for ranking in rankings:
        for rank, docid in enumerate(ranking, 1):
            sums[docid] = sums.get(docid, Fraction()) + Fraction(1, k + rank)
    return sorted(sums, key=sums.__getitem__, reverse=True)
