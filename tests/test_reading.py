"""How lists are read: sliding windows against a plain twin, rounds against sums by hand, both in turn."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import exp, log
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError
from lit_rerank.fusion import reciprocal
from lit_rerank.reading import Rounds, SlidingWindow, Twice, open_reading
from lit_rerank.reranker import Reranker
from lit_rerank.rounds import strengths
from lit_rerank.settings import RerankSettings


def by_number(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
    """An ideal reranker: orders each window by the number in its texts; beyond the choices asked for, backwards."""
    decoded = []
    for w, k in zip(windows, choices, strict=True):
        order = sorted(range(1, len(w) + 1), key=lambda i: int(w.passages[i - 1].text))
        decoded.append(Decoded((*order[:k], *reversed(order[k:])), tuple(-0.1 * i for i in range(len(w)))))
    return decoded


def numbered(qid: str, numbers: Sequence[int]) -> RankingRecord:
    return RankingRecord(qid, "query", tuple(Passage(f"d{number}", str(number)) for number in numbers))


def slide_alone(numbers: Sequence[int], window: int, stride: int, depth: int) -> list[int]:
    """The twin: sort slices of the list in place, from the bottom up, as RankGPT describes it."""
    ranked = list(numbers)
    end = min(depth, len(ranked))
    while True:
        start = max(0, end - window)
        ranked[start:end] = sorted(ranked[start:end])
        if start == 0:
            return ranked
        end -= stride


@given(
    lists=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    window=st.integers(2, 20),
    depth=st.integers(1, 60),
    data=st.data(),
)
def test_many_queries_advance_together_as_each_would_alone(
    lists: list[int], window: int, depth: int, data: st.DataObject
) -> None:
    sliding = SlidingWindow(window, data.draw(st.integers(1, window - 1)), depth)
    numbers = [random.Random(n).sample(range(n), n) for n in lists]
    rankings = sliding.rerank([numbered(f"q{i}", ns) for i, ns in enumerate(numbers)], by_number)
    for ns, ranking in zip(numbers, rankings, strict=True):
        expected = slide_alone(ns, window, sliding.stride, depth)
        assert [int(passage.text) for passage in ranking.passages] == expected
        assert len(ranking.decoded) == len(sliding.spans(len(ns)))


def test_the_spans_of_the_usual_setting() -> None:
    spans = SlidingWindow(20, 10, 100).spans(100)
    assert spans[0] == (80, 100)
    assert spans[-1] == (0, 20)
    assert len(spans) == 9
    assert SlidingWindow(20, 10, 100).spans(7) == [(0, 7)]


def test_run_scores_fall_strictly_and_order_the_run() -> None:
    (ranking,) = SlidingWindow().rerank([numbered("q", [3, 1, 2])], by_number)
    assert ranking.run == [("d1", 2.99), ("d2", 1 + 0.99 * exp(-0.1)), ("d3", 0.99 * exp(-0.2))]
    (ranking,) = SlidingWindow(2, 1, 2).rerank([numbered("q", [3, 1, 2])], by_number)
    assert ranking.run == [("d1", 2.99), ("d3", 1 + 0.99 * exp(-0.1)), ("d2", 0.0)]  # below the depth


@given(
    n=st.integers(1, 60), window=st.integers(2, 20), depth=st.integers(1, 60), top_k=st.integers(1, 70), data=st.data()
)
def test_the_top_k_are_the_same_with_fewer_choices(
    n: int, window: int, depth: int, top_k: int, data: st.DataObject
) -> None:
    numbers = random.Random(n).sample(range(n), n)
    whole = SlidingWindow(window, data.draw(st.integers(1, window - 1)), depth)
    (expected,) = whole.rerank([numbered("q", numbers)], by_number)
    (ranking,) = replace(whole, top_k=top_k).rerank([numbered("q", numbers)], by_number)
    reranked = min(top_k, depth)
    assert ranking.order[:reranked] == expected.order[:reranked]


def test_choices_that_matter() -> None:
    assert SlidingWindow(20, 10, 100).choices(100) == [20] * 9
    assert SlidingWindow(20, 10, 100, top_k=10).choices(100) == [10] * 9
    assert SlidingWindow(20, 10, 100, top_k=20).choices(100) == [10] * 8 + [20]
    assert SlidingWindow(20, 10, 100, top_k=25).choices(100) == [10] * 7 + [15, 20]
    assert SlidingWindow(20, 10, 100, top_k=3).choices(12) == [3]
    with pytest.raises(UserError, match="top_k is 0"):
        SlidingWindow(top_k=0)


@pytest.mark.parametrize(("window", "stride", "depth"), [(1, 1, 10), (5, 5, 10), (5, 0, 10), (5, 2, 0)])
def test_windows_that_cannot_slide_are_refused(window: int, stride: int, depth: int) -> None:
    with pytest.raises(UserError, match=f"window {window}, stride {stride}, depth {depth}"):
        SlidingWindow(window, stride, depth)


# -- rounds --------------------------------------------------------------------------------------------------------


def by_number_of_all(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
    """A reranker whose first choice is the likelier, the lower a passage's number."""
    assert set(choices) == {1}
    decoded = []
    for window in windows:
        weights = {i: exp(-int(passage.text)) for i, passage in enumerate(window.passages, start=1)}
        order = sorted(weights, key=lambda i: -weights[i])
        total = sum(weights.values())
        decoded.append(Decoded(tuple(order), tuple(log(weights[i] / total) for i in order)))
    return decoded


@given(n=st.integers(1, 60), window=st.integers(2, 20), depth=st.integers(1, 60), rounds=st.integers(1, 4))
def test_every_round_deals_each_passage_once_into_windows_of_one_size(
    n: int, window: int, depth: int, rounds: int
) -> None:
    reading, record = Rounds(window, depth, rounds), numbered("q", range(n))
    dealt = reading.deal(record)
    assert len(dealt) == reading.windows(n) == len(reading.choices(n))
    a_round = len(dealt) // rounds
    for number in range(rounds):
        hands = dealt[number * a_round : (number + 1) * a_round]
        assert sorted(i for hand in hands for i in hand) == list(range(min(n, depth)))
        sizes = Counter(map(len, hands))
        assert max(sizes) <= window
        assert max(sizes) - min(sizes) <= 1
    assert reading.deal(record) == dealt
    if a_round > 1 and rounds > 1:
        assert dealt[:a_round] != dealt[a_round : 2 * a_round]


def test_strengths_are_those_that_the_answers_were_made_of() -> None:
    """With answers as Luce's axiom has them, company does not matter, and the order is the true one."""
    records = [numbered("a", [5, 3, 1, 2, 4, 6, 0]), numbered("b", [1, 0])]
    reading = Rounds(window=3, depth=6, rounds=5)
    rankings = reading.rerank(records, by_number_of_all)
    assert [[int(passage.text) for passage in ranking.passages] for ranking in rankings] == [
        [1, 2, 3, 4, 5, 6, 0],  # the last is below the depth
        [0, 1],
    ]
    assert rankings[0].probabilities[6] == 0
    for ranking in rankings:
        assert [score for _, score in ranking.run] == sorted((score for _, score in ranking.run), reverse=True)
        numbers = {i: int(passage.text) for i, passage in enumerate(ranking.record.passages)}
        found = strengths(
            [{i: -numbers[i] - log(sum(exp(-numbers[j]) for j in shown)) for i in shown} for shown in ranking.shown]
        )
        assert all(found[i] - found[0] == pytest.approx(numbers[0] - numbers[i]) for i in found)


def test_strengths_are_exact_however_the_windows_are_dealt() -> None:
    """The mean of all is free: what rounding makes of its 0 must not be divided by."""
    reading = Rounds(window=4, depth=20, rounds=4)
    for qid in ["688007", *map(str, range(300))]:  # the first is a query to which that happened
        draw = random.Random(qid)
        true = [draw.gauss(0, 2) for _ in range(20)]
        dealt = reading.deal(replace(numbered("q", range(20)), qid=qid))
        found = strengths([{i: true[i] - log(sum(exp(true[j]) for j in shown)) for i in shown} for shown in dealt])
        assert max(abs(found[i] - found[0] - (true[i] - true[0])) for i in range(20)) < 1e-9


def test_strengths_are_least_squares() -> None:
    """Against alternating means, each the best while the others stay as they are."""
    draw = random.Random(0)
    answers = [{i: draw.gauss(-1, 1) for i in draw.sample(range(6), 3)} for _ in range(8)]
    s, c = dict.fromkeys(range(6), 0.0), dict.fromkeys(range(8), 0.0)
    for _ in range(2000):
        for window in c:
            c[window] = fmean(s[i] - logp for i, logp in answers[window].items())
        for passage in s:
            s[passage] = fmean(answers[w][passage] + c[w] for w in c if passage in answers[w])
    found = strengths(answers)
    assert all(found[i] - found[0] == pytest.approx(s[i] - s[0], abs=1e-6) for i in found)


def test_windows_that_share_nothing_are_alike_in_their_means() -> None:
    found = strengths([{0: log(0.97), 1: log(0.01), 2: log(0.02)}, {3: log(0.5), 4: log(0.5)}, {5: 0.0}])
    assert found[0] + found[1] + found[2] == pytest.approx(0)
    assert [found[3], found[4], found[5]] == pytest.approx([0, 0, 0])  # as good as chance, alone or not


def test_equals_stay_in_their_own_order() -> None:
    def alike(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
        return [Decoded(tuple(range(1, len(w) + 1)), (-log(len(w)),) * len(w)) for w in windows]

    (ranking,) = Rounds(8, 18, 2).rerank([numbered("q", range(20))], alike)
    assert ranking.order == tuple(range(20))


def test_a_decoder_without_scores_is_named() -> None:
    def text_alone(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
        return [Decoded(tuple(range(1, len(window) + 1))) for window in windows]

    with pytest.raises(UserError, match="this decoder gives none"):
        Rounds().rerank([numbered("q", range(5))], text_alone)


def test_rounds_read_a_model_through_the_interface(tiny_model: Path) -> None:
    texts = [f"passage {i}" for i in range(9)]
    reading = Rounds(window=4, depth=8, rounds=2)
    reranker = Reranker.from_pretrained(str(tiny_model), reading=reading)
    record = RankingRecord("query", "fleas", tuple(Passage(str(i), text) for i, text in enumerate(texts)))
    answers = []
    for hand in reading.deal(record):
        (decoded,) = reranker.decoder([Window.of(record, hand)])
        answers.append({hand[i - 1]: p for i, p in zip(decoded.permutation, decoded.logps or (), strict=True)})
    found = strengths(answers)
    expected = [*sorted(range(8), key=lambda i: -found[i]), 8]
    assert [int(passage.docid) for passage in reranker.rank("fleas", texts)] == expected


def test_rounds_go_by_first_choices_alone(tiny_model: Path) -> None:
    assert RerankSettings(rounds=2).how == "first"
    assert RerankSettings(decode="chain").how == "chain"
    for decode in ("chain", "likelihood", "generate"):
        with pytest.raises(UserError, match=f"which decode {decode} does not give"):
            RerankSettings(rounds=2, decode=decode)
        with pytest.raises(UserError, match=f"which decode {decode} does not give"):
            Reranker.from_pretrained(str(tiny_model), decode=decode, reading=Rounds())
    assert RerankSettings(window=8, stride=4, rounds=2).how is None
    assert RerankSettings(window=8, stride=4, rounds=2, decode="chain").how == "chain"
    for decode in ("likelihood", "generate"):
        with pytest.raises(UserError, match=f"which decode {decode} does not give"):
            RerankSettings(window=8, stride=4, rounds=2, decode=decode)
    for reading in (Rounds(), Twice()):
        with pytest.raises(UserError, match=r"[34] rounds are asked for, or kept .* Leave self_consistency out"):
            Reranker.from_pretrained(str(tiny_model), reading=reading, self_consistency=2)
    with pytest.raises(UserError, match=r"2 rounds are asked for, or kept by the adapter: .* top_k"):
        open_reading(top_k=5, rounds=2)
    assert open_reading(8, 4, 50) == SlidingWindow(8, 4, 50)
    assert open_reading(8, None, 50, rounds=2) == Rounds(8, 50, 2)


def test_what_is_not_named_of_a_reading_is_as_it_is_known() -> None:
    slides, deals = SlidingWindow(8, 3), Rounds(6, 100, 4)
    assert open_reading() == SlidingWindow(20, 10, 100)
    assert open_reading(depth=50, top_k=5, known=slides) == SlidingWindow(8, 3, 50, 5)
    assert open_reading(window=12, known=slides) == SlidingWindow(12, 6)
    assert open_reading(stride=2, known=slides) == SlidingWindow(8, 2)
    assert open_reading(rounds=2, known=slides) == Rounds(8, 100, 2)
    assert open_reading(depth=50, known=deals) == Rounds(6, 50, 4)
    assert open_reading(window=4, known=deals) == SlidingWindow(4, 2)
    assert open_reading(rounds=2, known=deals) == Rounds(6, 100, 2)
    assert open_reading(8, 4, 50, rounds=2) == Twice(8, 4, 50, 2)
    assert open_reading(depth=50, known=Twice(8, 3, 100, 2)) == Twice(8, 3, 50, 2)
    assert open_reading(rounds=4, known=Twice(8, 3, 100, 2)) == Rounds(8, 100, 4)
    assert open_reading(window=8, known=Twice(8, 3, 100, 2)) == SlidingWindow(8, 4)
    assert open_reading(stride=3, rounds=4, known=slides) == Twice(8, 3, 100, 4)
    for known in (deals, Twice()):
        with pytest.raises(UserError, match="top_k"):
            open_reading(top_k=5, known=known)


@pytest.mark.parametrize(("window", "depth", "rounds"), [(1, 10, 1), (5, 0, 1), (5, 5, 0), (5, 5, 10**6)])
def test_rounds_that_make_no_sense_are_refused(window: int, depth: int, rounds: int) -> None:
    with pytest.raises(UserError, match=r"window|rounds is"):
        Rounds(window, depth, rounds)


# -- twice ---------------------------------------------------------------------------------------------------------


def noisy(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
    """A reranker that is often wrong, and of two readings of a passage differently."""
    decoded = []
    for window in windows:
        draw = random.Random("/".join(passage.docid for passage in window.passages))
        weights = {i: exp(draw.gauss(-0.3 * int(p.text), 1)) for i, p in enumerate(window.passages, start=1)}
        order = sorted(weights, key=lambda i: -weights[i])
        decoded.append(Decoded(tuple(order), tuple(log(weights[i] / sum(weights.values())) for i in order)))
    return decoded


@given(n=st.integers(1, 60), window=st.integers(2, 20), depth=st.integers(1, 60), rounds=st.integers(1, 3))
def test_read_twice_is_one_reading_after_the_other_and_their_ranks_summed(
    n: int, window: int, depth: int, rounds: int
) -> None:
    record = numbered("q", random.Random(n).sample(range(n), n))
    reading = Twice(window, window // 2, depth, rounds)
    asked: list[int] = []

    def told(windows: Sequence[Window], choices: Sequence[int]) -> list[Decoded]:
        asked.extend(choices)
        return noisy(windows, choices)

    (ranking,) = reading.rerank([record], told)
    assert asked == reading.choices(n)
    assert asked[-ranking.dealt :] == [1] * ranking.dealt
    (slid,) = SlidingWindow(window, window // 2, depth).rerank([record], noisy)
    best = min(20, depth, n)
    (again,) = Rounds(max(2, window // 2), best, rounds).rerank(
        [RankingRecord("q", "query", tuple(slid.passages))], noisy
    )
    ranks = [{passage.docid: rank for rank, passage in enumerate(one.passages, 1)} for one in (slid, again)]
    docids = [passage.docid for passage in slid.passages]
    expected = sorted(
        docids[:best], key=lambda docid: (-sum(Fraction(1, 60 + r[docid]) for r in ranks), ranks[0][docid])
    )
    assert [passage.docid for passage in ranking.passages] == expected + docids[best:]
    assert sorted(ranking.order) == list(range(n))
    assert len(ranking.decoded) == len(ranking.shown) == reading.windows(n) == len(reading.choices(n))
    assert ranking.decoded == slid.decoded + again.decoded
    assert [record.passages[i] for shown in ranking.shown[len(slid.shown) :] for i in shown] == [
        replace(slid.passages[i], score=None) for shown in again.shown for i in shown
    ]
    assert [score for _, score in ranking.run] == sorted((score for _, score in ranking.run), reverse=True)
    probable = {p.docid: q for p, q in zip(again.passages, again.probabilities, strict=True)}
    assert ranking.probabilities[:best] == tuple(probable[docid] for docid in expected)
    assert ranking.probabilities[best:] == slid.probabilities[best:]


@pytest.mark.parametrize(("passages", "window"), [(9, 6), (9, 4), (5, 8), (2, 4)])  # rounds' windows hold 2 or 3
def test_a_model_reads_twice_through_the_interface(tiny_model: Path, passages: int, window: int) -> None:
    """Of a chain one choice alone is asked for in rounds, whose scores are those of `first`."""
    texts = [f"passage {i}" for i in range(passages)]
    reading = Twice(window=window, stride=window // 2, rounds=2)
    reranker = Reranker.from_pretrained(str(tiny_model), reading=reading)
    record = RankingRecord("query", "fleas", tuple(Passage(str(i), text) for i, text in enumerate(texts)))
    (slid,) = reading.sliding.rerank([record], reranker.decoder)
    first = Reranker.from_pretrained(str(tiny_model), decode="first")
    (again,) = reading.again.rerank([RankingRecord("query", "fleas", tuple(slid.passages))], first.decoder)
    expected = reciprocal([[p.docid for p in one.passages] for one in (slid, again)])
    (ranking,) = reading.rerank([record], reranker.decoder)
    dealt = ranking.decoded[-ranking.dealt :]
    assert [answer.permutation for answer in dealt] == [answer.permutation for answer in again.decoded]
    for answer, first_one in zip(dealt, again.decoded, strict=True):
        assert answer.logps == pytest.approx(first_one.logps, abs=1e-5)
    assert [passage.docid for passage in reranker.rank("fleas", texts)] == expected
