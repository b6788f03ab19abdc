"""95 % intervals of means, beside figures worked out in other ways."""

import random
import statistics
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from lit_rerank.intervals import bootstrap_interval, show_interval, student_interval

INTERVALS = (bootstrap_interval, student_interval)


def test_of_many_values_both_are_the_normal_ones() -> None:
    draw = random.Random(0)
    values = [draw.gauss(0.4, 0.2) for _ in range(200)]
    half = 1.96 * statistics.stdev(values) / 200**0.5
    expected = (statistics.fmean(values) - half, statistics.fmean(values) + half)
    for interval in INTERVALS:
        assert interval(values) == pytest.approx(expected, abs=0.1 * half)
        assert interval(values) == interval(values)


def test_of_few_values_students_is_wide() -> None:
    values = [-1.0, -0.35, 17 / 60]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / 3**0.5
    assert student_interval(values) == pytest.approx((statistics.fmean(values) - half, statistics.fmean(values) + half))
    assert bootstrap_interval(values) == (-1.0, pytest.approx(17 / 60))  # their extremes, whatever lies beyond


def test_of_one_value_there_is_none() -> None:
    assert [interval(values) for interval in INTERVALS for values in ([], [0.5])] == [None] * 4
    assert (show_interval(None, ".2f"), show_interval((-0.5, 1.0), "+.2f")) == ("-", "-0.50 to +1.00")


def test_what_differs_by_rounding_alone_is_alike() -> None:
    for interval in INTERVALS:
        assert interval([0.3, 0.1 + 0.2]) == (0.3, 0.3)


def test_what_is_no_number_makes_no_interval_of_numbers() -> None:
    for interval in INTERVALS:
        assert not np.isfinite(interval([-1.0, -2.0, -3.0, -np.inf])).all()


def test_many_values_take_little_memory() -> None:
    values = [float(i % 7) for i in range(2_000)]
    tracemalloc.start()
    bootstrap_interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all resamples at once are 160 MB


def test_the_bootstraps_are_of_ratios_of_sums() -> None:
    draw = np.random.default_rng(1)
    weights = draw.uniform(1, 9, 50)
    values = weights * 2 + draw.normal(0, 1, 50)
    found = bootstrap_interval(list(values), list(weights))
    assert found is not None
    assert found[0] < values.sum() / weights.sum() < found[1]
    assert found == bootstrap_interval(list(values), list(weights))
