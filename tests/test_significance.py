"""Paired comparisons, against all assignments of signs counted one by one and figures worked out by hand."""

import random
import statistics
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_rerank.comparison.significance import corrected, paired, randomisation_test, show_p


def exact(differences: list[float]) -> float:
    """How many of all sign assignments are at least as extreme."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20).map(lambda value: value / 20), min_size=1, max_size=9))
def test_the_test_counts_all_assignments_of_few_queries(differences: list[float]) -> None:
    assert randomisation_test(differences) == pytest.approx(exact(differences))


def test_means_that_differ_by_rounding_alone_are_equal() -> None:
    assert randomisation_test([-0.65, -1.0, 0.7, 0.95]) == 1.0


def test_many_queries_are_drawn_from_the_same_each_time() -> None:
    draw = random.Random(0)
    differences = [draw.gauss(0.1, 0.2) for _ in range(17)]
    p = randomisation_test(differences)
    assert p == randomisation_test(differences)
    assert p == pytest.approx(exact(differences), abs=0.004)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert 0 < p < 1


def test_a_comparison_by_hand() -> None:
    found = paired([0.5, 0.9, 0.3, 0.2, 0.1 + 0.2], [0.4, 0.5, 0.3, 0.5, 0.3])
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)  # 0.1 + 0.2 is 0.3, but for rounding
    differences = [0.1, 0.4, 0.0, -0.3, 0.0]
    assert found.difference == pytest.approx(0.04)
    assert found.effect_size == pytest.approx(0.04 / statistics.stdev(differences))
    assert found.p == pytest.approx(exact(differences))
    half = stats.t.ppf(0.975, 4) * statistics.stdev(differences) / 5**0.5
    assert found.interval == pytest.approx((0.04 - half, 0.04 + half))


def test_equal_systems_and_single_queries() -> None:
    same = paired([0.5, 0.2], [0.5, 0.2])
    assert (same.ties, same.p, same.effect_size, same.interval) == (2, 1.0, 0.0, (0.0, 0.0))
    one = paired([0.5], [0.2])
    assert (one.wins, one.p, one.effect_size, one.interval) == (1, 1.0, None, None)
    steady = paired([1.0, 1.0], [0.0, 0.0])
    assert (steady.difference, steady.effect_size, steady.p) == (1.0, None, 0.5)
    rounded = paired([0.1 + 0.2, 0.4], [0.0, 0.1])  # both differ by 0.3, one of them by rounding more
    assert rounded.effect_size is None


def test_the_correction_is_benjamini_and_hochbergs() -> None:
    assert corrected([0.01, 0.04, 0.03, 0.8]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.8])
    assert corrected([0.2]) == [0.2]


def test_no_p_is_shown_as_0() -> None:
    assert [show_p(p) for p in (0.00002, 0.0001, 0.04999, 1.0)] == ["<0.0001", "0.0001", "0.0500", "1.0000"]
