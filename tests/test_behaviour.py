"""What choices show, on windows small enough to work out."""

from dataclasses import replace
from math import log

import pytest

from data_modules.choices import WindowChoices
from lit_rerank.comparison.behaviour import behaviour, fresh, judged_choices, picked_positions, reliability

GRADES = {"a": 0, "b": 2, "c": 2, "e": 1}  # d is not judged
WINDOW = WindowChoices(
    "q1", 0, ("a", "b", "c", "d", "e"), (3, 1, 2, 5, 4), 5, (log(0.5), log(0.9), log(0.8), log(0.7), 0.0)
)


def test_right_is_the_highest_grade_that_remains() -> None:
    # c (b is as good), a (b was left), b, e (d counts as 0); the last leaves no choice.
    assert list(judged_choices(WINDOW, GRADES)) == [
        (pytest.approx(0.5), True),
        (pytest.approx(0.9), False),
        (pytest.approx(0.8), True),
        (pytest.approx(0.7), True),
    ]
    assert len(list(judged_choices(replace(WINDOW, choices=2), GRADES))) == 2
    assert list(judged_choices(replace(WINDOW, logps=None), GRADES)) == []
    assert list(judged_choices(WINDOW, {})) == []


def test_choices_among_equals_say_nothing() -> None:
    choices = list(judged_choices(WINDOW, {"c": 1, "a": 1}))
    assert [right for _, right in choices] == [True, True]  # then b, e and d remain, none of them judged


def test_reliability_by_hand() -> None:
    bins = reliability([(0.0, False), (0.05, True), (0.1, True), (0.95, True), (1.0, False), (1.0, True)])
    assert [b.count for b in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert (bins[0].confidence, bins[0].accuracy) == (pytest.approx(0.025), 0.5)
    assert (bins[2].confidence, bins[2].accuracy) == (None, None)
    assert (bins[9].low, bins[9].high) == (0.9, 1.0)
    assert bins[9].accuracy == pytest.approx(2 / 3)


def test_positions_are_shares_of_the_windows_that_have_the_step() -> None:
    small = WindowChoices("q1", 1, ("a", "b"), (1, 2), 2, (0.0, 0.0))
    shares, windows = picked_positions([WINDOW, small, replace(small, qid="q2", choices=1)])
    assert windows == (3, 1, 1, 1)
    assert shares[0] == pytest.approx((2 / 3, 0, 1 / 3, 0, 0))
    assert shares[1] == (1, 0, 0, 0, 0)
    assert shares[3] == (0, 0, 0, 0, 1)
    assert picked_positions([]) == ((), ())


def test_a_window_that_holds_what_was_ordered_shows_no_preference_for_places() -> None:
    """A reranker that knows the order and reads no places: after the first window, its best stand where it is told."""
    slid = [
        WindowChoices("q1", 0, ("c", "d", "e", "f"), (4, 2, 1, 3), 4, (-1.0, -1.0, -1.0, 0.0)),
        WindowChoices("q1", 1, ("a", "b", "f", "d"), (3, 4, 1, 2), 4, (-1.0, -1.0, -1.0, 0.0)),
    ]
    assert list(fresh(slid)) == slid[:1]
    found = behaviour(slid, {"q1": {"f": 1}})
    assert (found.positions[0], found.step_windows) == ((0, 0, 0, 1), (1, 1, 1))
    assert (found.windows, found.judged_choices) == (2, 2)  # how sure and how right it is shows in all
    assert behaviour([replace(slid[0], malformed=True), slid[1]], {}).positions == ()


def test_all_windows_of_rounds_are_fresh() -> None:
    dealt = [("a", "b"), ("c", "d"), ("a", "d"), ("b", "c")]
    rounds = [
        WindowChoices("q1", turn, docids, (1, 2), 1, (-0.1, -2.0), dealt=True) for turn, docids in enumerate(dealt)
    ]
    assert list(fresh(rounds)) == rounds
    slid = WindowChoices("q1", 0, ("a", "b", "c", "d"), (1, 2, 3, 4), 4)
    assert list(fresh([slid, *(replace(window, turn=window.turn + 1) for window in rounds)])) == [slid]
    again = [replace(WINDOW, turn=turn, dealt=True) for turn in range(3)]  # a list that fits into one window
    assert list(fresh(again)) == again


def test_of_lists_read_twice_only_windows_that_slid_tell_how_sure_a_reranker_is() -> None:
    dealt = replace(WINDOW, turn=1, dealt=True)
    alone, both = (behaviour(windows, {"q1": GRADES}) for windows in ([WINDOW], [WINDOW, dealt]))
    assert (alone.windows, both.windows) == (1, 2)
    assert (both.judged_choices, both.calibration_error) == (alone.judged_choices, alone.calibration_error)
    assert behaviour([dealt], {"q1": GRADES}).judged_choices == alone.judged_choices


def test_figures_of_a_system() -> None:
    found = behaviour([WINDOW, replace(WINDOW, turn=1, malformed=True)], {"q1": GRADES})
    assert (found.windows, found.malformed, found.judged_choices, found.accuracy) == (2, 1, 4, 0.75)
    assert found.confidence == pytest.approx(0.725)
    # Bins of one choice each: 0.5 and 0.9, wrong by as much; 0.8 by 0.2, 0.7 by 0.3.
    assert found.calibration_error == pytest.approx((0.5 + 0.9 + 0.2 + 0.3) / 4)
    nothing = behaviour([replace(WINDOW, logps=None)], {"q1": GRADES})
    assert (nothing.judged_choices, nothing.accuracy, nothing.calibration_error) == (0, None, None)
    assert nothing.positions
