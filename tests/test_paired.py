"""What has changed between two measurements, with intervals, and what of that is judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lit_rerank.errors import UserError
from lit_rerank.measurement import Answered, Read, Retention
from lit_rerank.paired import above_chance, beyond, flat, paired

UNIFORM = -5.5


def retention(
    right: list[bool],
    logprobs: list[float] | None = None,
    bits: list[float] | None = None,
    chances: list[float | None] | None = None,
) -> Retention:
    """Letters always wrong; cloze as told, where random tokens have -5.5; documents of 10, 20, ... bytes."""
    answered = [
        Answered(
            str(i),
            "s",
            (1.0, 0.0, 0.0, 0.0),
            tuple(v if j == 1 else (v - 1 if ok else v + 1) for j in range(4)),
            1,
            UNIFORM,
        )
        for i, (ok, v) in enumerate(zip(right, logprobs or [-1.0] * len(right), strict=True))
    ]
    told = enumerate(zip(bits or [], chances or [None] * len(bits or []), strict=True))
    return Retention(tuple(answered), tuple(Read(str(i), b, 10 * (i + 1), chance) for i, (b, chance) in told))


def test_nothing_changes_where_nothing_changes() -> None:
    same = retention([True] * 9 + [False], bits=[20.0, 50.0])
    for name, found in paired(same, same).items():
        assert (found["difference"], found["low"], found["high"], found["lost"]) == (0, 0, 0, False), name


def test_what_is_no_number_has_dropped() -> None:
    right, known = [True] * 9 + [False], [-1.0 - i / 10 for i in range(9)]
    before = retention(right, logprobs=[*known, -2.0], bits=[20.0, 50.0])
    after = retention(right, logprobs=[*known, float("nan")], bits=[20.0, float("inf")])
    found = paired(before, after)
    assert beyond(found, {"answer_logprob": 9.0, "bits_per_byte": 9.0}) == ["answer_logprob", "bits_per_byte"]
    assert found["answer_logprob"]["lost"]


def test_differences_and_what_is_judged() -> None:
    draw = np.random.default_rng(0)
    before = retention([True] * 60 + [False] * 40, list(draw.normal(-1, 0.5, 100)), [25.0, 45.0, 70.0])
    after = retention(
        [True] * 40 + [False] * 60, [q.answer_logprob - 0.3 for q in before.questions], [30.0, 52.0, 78.0]
    )
    found = paired(before, after)
    assert found["acc_cloze"]["difference"] == pytest.approx(-0.2)
    assert found["acc_cloze"]["lost"]
    # Of a proportion: about 1.96 standard errors of the mean of the differences.
    low, high = found["acc_cloze"]["low"], found["acc_cloze"]["high"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std([-1] * 20 + [0] * 80) / 10, rel=0.1)
    assert found["answer_logprob"]["difference"] == pytest.approx(-0.3)
    assert found["answer_margin"]["difference"] == pytest.approx(-0.4)  # 1 where right, else -1
    assert found["bits_per_byte"]["difference"] == pytest.approx((160 - 140) / 60)
    assert found["bits_per_byte"]["low"] > 0
    assert found["bits_per_byte"]["lost"]
    # The letters are all wrong: nothing can be lost.
    assert not found["acc"]["judged"]
    figures = flat(found)
    assert figures["judged"] == figures["lost"] == ["acc_cloze", "answer_logprob", "answer_margin", "bits_per_byte"]
    assert figures["not_judged_base_at_chance"] == ["acc"]
    assert figures["difference.acc_cloze.low"] == low
    assert paired(before, after) == found
    gained = paired(after, before)
    assert gained["acc_cloze"]["difference"] > 0
    assert flat(gained)["lost"] == []


def test_a_margin_stays_where_all_answers_become_less_likely() -> None:
    before = retention([True] * 9 + [False], [-1.0 - i / 10 for i in range(10)])
    after = retention([True] * 9 + [False], [q.answer_logprob - 0.4 for q in before.questions])
    found = paired(before, after)
    assert found["answer_logprob"]["lost"]
    assert found["answer_margin"]["before"] == pytest.approx(0.8)
    assert found["answer_margin"]["difference"] == pytest.approx(0)
    gains = [1.0] * 9 + [-1.0]
    assert above_chance("answer_margin", before) == pytest.approx(ttest_1samp(gains, 0, alternative="greater").pvalue)


def test_a_drop_is_beyond_what_is_allowed_only_with_its_whole_interval() -> None:
    before = retention([True] * 60 + [False] * 40, bits=[20.0, 40.0, 61.0])
    after = retention([True] * 40 + [False] * 60, bits=[30.0, 60.0, 95.0])
    found = paired(before, after)
    least = -found["acc_cloze"]["high"]
    assert 0 < least < 0.2
    assert beyond(found, {"acc_cloze": least - 0.01, "acc": 0.0}) == ["acc_cloze"]
    assert beyond(found, {"acc_cloze": least + 0.01}) == []
    assert beyond(found, {"bits_per_byte": 0.9}) == ["bits_per_byte"]
    assert beyond(found, {"bits_per_byte": 1.2}) == []
    assert beyond(paired(after, before), {"acc_cloze": 0.0, "bits_per_byte": 0.0}) == []
    # No better than guessing at first: whatever comes after, it is not judged.
    guessing = retention([True] * 26 + [False] * 74)
    assert beyond(paired(guessing, retention([False] * 100)), {"acc_cloze": 0.0}) == []


def test_chance_is_a_test_of_what_is_known() -> None:
    gains = [0.5, -0.2, 0.1, 0.9]
    known = retention([True, True, True, False], [UNIFORM + gain for gain in gains], [80.0, 160.0])
    assert above_chance("acc_cloze", known) == pytest.approx(4 * 0.25**3 * 0.75 + 0.25**4)
    assert above_chance("acc", known) == 1
    expected: Any = ttest_1samp(gains, 0, alternative="greater")
    assert above_chance("answer_logprob", known) == pytest.approx(expected.pvalue)
    assert above_chance("bits_per_byte", known) == 1  # eight bits a byte, where nothing else is told


def test_random_tokens_are_no_better_than_chance() -> None:
    """Though they may be far better than random bytes."""
    draw = np.random.default_rng(2)
    random = retention([True, False] * 50, list(draw.normal(UNIFORM, 1, 100)), [35.0, 70.0, 105.0], [34.0, 69.5, 107.0])
    assert above_chance("answer_logprob", random) > 0.05
    assert above_chance("bits_per_byte", random) > 0.05
    assert flat(paired(random, random))["judged"] == ["acc_cloze"]


def test_only_the_same_can_be_compared() -> None:
    with pytest.raises(UserError, match="different questions"):
        paired(retention([True, False]), retention([True]))
    with pytest.raises(UserError, match="different documents"):
        paired(retention([True], bits=[1.0]), retention([True]))
    one, other, untold = (replace(retention([True]), examples=shown) for shown in (("a",), ("a", "b"), None))
    with pytest.raises(UserError, match=r"different examples before their questions \(1 and 2 in all\)"):
        paired(one, other)
    for before, after in ((one, one), (one, untold), (untold, one)):
        paired(before, after)


def test_of_one_question_nothing_is_judged() -> None:
    found = paired(retention([True], bits=[20.0]), retention([False], bits=[30.0]))
    assert found["bits_per_byte"]["difference"] == pytest.approx(1.0)
    assert flat(found)["judged"] == []
