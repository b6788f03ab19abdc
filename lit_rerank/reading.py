"""How lists that are longer than a window are read."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf
from statistics import fmean

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.chain import check_size
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError

Decode = Callable[[Sequence[Window], Sequence[int]], Sequence[Decoded]]
MOST_ROUNDS = 1000
NOTHING = 1e-10  # of the largest eigenvalue: what is less is 0, by rounding alone it can be 1e-16 of it


@dataclass(frozen=True)
class Ranking:
    """A record's candidates in their new order.

    Attributes:
        order: indices into `record.passages`, best first.
        decoded: the answer to each window, in the order of reading.
        shown: each window's passages, as indices into `record.passages` in the order in which the model read them.
        probabilities: of each in `order`, how probable the choice was that put it there (see `Decoded.logps`); 0 for
            what was not reranked or read from a generated text. In rounds: the geometric mean over all windows.
    """

    record: RankingRecord
    order: tuple[int, ...]
    decoded: tuple[Decoded, ...]
    shown: tuple[tuple[int, ...], ...]
    probabilities: tuple[float, ...]

    @property
    def passages(self) -> list[Passage]:
        """Best first. Before the point, a score tells how many passages stand below; after it, how probable the choice
        was, 0.99 for a certain one."""
        n = len(self.order) - 1
        return [
            replace(self.record.passages[i], score=n - rank + 0.99 * probability)
            for rank, (i, probability) in enumerate(zip(self.order, self.probabilities, strict=True))
        ]

    @property
    def run(self) -> list[tuple[str, float]]:
        """(docid, score) as a TREC run wants them."""
        return [(passage.docid, passage.score or 0.0) for passage in self.passages]

    @property
    def malformed(self) -> int:
        """How many windows' answers needed repair."""
        return sum(decoded.malformed for decoded in self.decoded)


@dataclass(frozen=True)
class SlidingWindow:
    """How a list longer than a window is read: from its end to its start, so that the best passages rise.

    Attributes:
        window: passages in one prompt.
        stride: how far the window moves up each time.
        depth: how many candidates, from the top of the list, are reranked; the others keep their order below.
        top_k: how many of the best are asked for, None: all. Their order is the same for any; what ends up below them
            costs no choices (but with self-consistency, where all have a say).
    """

    window: int = 20
    stride: int = 10
    depth: int = 100
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.window < 2 or self.depth < 1 or not 1 <= self.stride < self.window:
            raise UserError(
                f"window {self.window}, stride {self.stride}, depth {self.depth}: a window holds 2 or more passages, "
                "the stride is at least 1 and less than the window, the depth at least 1"
            )
        check_size(self.window)
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or left out for the whole order")

    def spans(self, n: int) -> list[tuple[int, int]]:
        """The windows `[start, end)` over `n` candidates, in the order of reading."""
        end = min(n, self.depth)
        spans = [(max(0, end - self.window), end)]
        while spans[-1][0] > 0:
            end -= self.stride
            spans.append((max(0, end - self.window), end))
        return spans

    def choices(self, n: int) -> list[int]:
        """How many choices of each of the `spans` matter: those that move on to the next window, and the top k."""
        spans = self.spans(n)
        next_ends = [end for _, end in spans[1:]] + [0]
        return [
            max(next_end, min(end, self.top_k or end)) - start
            for (start, end), next_end in zip(spans, next_ends, strict=True)
        ]

    def windows(self, n: int) -> int:
        """How many windows a list of `n` candidates is read in."""
        return len(self.spans(n))

    def first(self, record: RankingRecord) -> tuple[int, ...]:
        """The window that is read first, as indices into the record's passages."""
        return tuple(range(*self.spans(len(record.passages))[0]))

    def rerank(self, records: Sequence[RankingRecord], decode: Decode) -> list[Ranking]:
        """Rerank the candidates of every record; the windows of all records advance together."""
        orders = [list(range(len(record.passages))) for record in records]
        probabilities = [[0.0] * len(record.passages) for record in records]
        answers: list[list[Decoded]] = [[] for _ in records]
        read: list[list[tuple[int, ...]]] = [[] for _ in records]
        spans = [self.spans(len(record.passages)) for record in records]
        choices = [self.choices(len(record.passages)) for record in records]
        for turn in range(max(map(len, spans), default=0)):
            active = [i for i in range(len(records)) if turn < len(spans[i])]
            windows = [Window.of(records[i], orders[i][slice(*spans[i][turn])]) for i in active]
            for i, decoded in zip(active, decode(windows, [choices[i][turn] for i in active]), strict=True):
                start, end = spans[i][turn]
                shown = tuple(orders[i][start:end])
                orders[i][start:end] = [shown[identifier - 1] for identifier in decoded.permutation]
                probabilities[i][start:end] = map(exp, decoded.logps or [-inf] * (end - start))
                answers[i].append(decoded)
                read[i].append(shown)
        return [
            Ranking(record, tuple(order), tuple(decoded), tuple(shown), tuple(probable))
            for record, order, decoded, shown, probable in zip(
                records, orders, answers, read, probabilities, strict=True
            )
        ]


@dataclass(frozen=True)
class Rounds:
    """How a list is read in windows dealt at random, several times over, and ordered by what explains all answers.

    No window waits for another: those of all lists and rounds are batched together. The decoder is one that scores all
    passages of a window (`First`); see `strengths` for what becomes of the scores. What a model prefers for
    where a passage stands cancels out as rounds are added.

    Attributes:
        window: most passages in one prompt; the windows of a list are of the same size, or differ by one.
        depth: how many candidates, from the top of the list, are reranked; the others keep their order below.
        rounds: how often each passage is read. Sliding reads it about window / stride times.
    """

    window: int = 20
    depth: int = 100
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.window < 2 or self.depth < 1:
            raise UserError(
                f"window {self.window}, depth {self.depth}: a window holds 2 or more passages, the depth is at least 1"
            )
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise UserError(f"rounds is {self.rounds}; it is 1 to {MOST_ROUNDS}")
        check_size(self.window)

    def windows(self, n: int) -> int:
        """How many windows a list of `n` candidates is read in."""
        return self.rounds * ceil(min(n, self.depth) / self.window)

    def choices(self, n: int) -> list[int]:
        """How many choices of each window matter."""
        return [1] * self.windows(n)

    def deal(self, record: RankingRecord) -> list[tuple[int, ...]]:
        """The windows of all rounds, as indices into the record's passages; the same each time."""
        n = min(len(record.passages), self.depth)
        hands = ceil(n / self.window)
        dealt: list[tuple[int, ...]] = []
        for number in range(self.rounds):
            order = random.Random(f"{number}/{record.qid}").sample(range(n), n)
            dealt += [tuple(order[hand::hands]) for hand in range(hands)]
        return dealt

    def first(self, record: RankingRecord) -> tuple[int, ...]:
        """The window that is read first, as indices into the record's passages."""
        return self.deal(record)[0]

    def rerank(self, records: Sequence[RankingRecord], decode: Decode) -> list[Ranking]:
        """Rerank the candidates of every record."""
        dealt = [self.deal(record) for record in records]
        windows = [Window.of(record, shown) for record, hands in zip(records, dealt, strict=True) for shown in hands]
        answers = iter(decode(windows, [1] * len(windows)))
        return [
            _by_strength(record, hands, [next(answers) for _ in hands])
            for record, hands in zip(records, dealt, strict=True)
        ]


Reading = SlidingWindow | Rounds


def open_reading(
    window: int | None = None,
    stride: int | None = None,
    depth: int = 100,
    top_k: int | None = None,
    rounds: int | None = None,
    known: Reading | None = None,
) -> Reading:
    """In `rounds`, where they are asked for; else by a sliding window.

    Args:
        stride: by default half the window.
        known: the window, where none is named; where neither stride nor rounds are either, these, too.
    """
    known = known or SlidingWindow()
    if window is None and stride is None and rounds is None:
        stride, rounds = (None, known.rounds) if isinstance(known, Rounds) else (known.stride, None)
    window = known.window if window is None else window
    if rounds is None:
        return SlidingWindow(window, window // 2 if stride is None else stride, depth, top_k)
    if top_k is not None:
        raise UserError(
            "in rounds every passage is scored, and nothing is saved by top_k: leave it out, or name a "
            "window alone to let it slide"
        )
    return Rounds(window, depth, rounds)


def _by_strength(record: RankingRecord, dealt: Sequence[tuple[int, ...]], decoded: Sequence[Decoded]) -> Ranking:
    """The candidates by the strength that explains all answers best; equals in their own order."""
    answers: list[dict[int, float]] = []
    for shown, answer in zip(dealt, decoded, strict=True):
        if answer.logps is None:
            raise UserError("rounds need the scores of all passages of a window, and this decoder gives none")
        answers.append({shown[i - 1]: logp for i, logp in zip(answer.permutation, answer.logps, strict=True)})
    found = strengths(answers)
    order = sorted(found, key=lambda index: (-round(found[index], 9), index))
    below = range(len(order), len(record.passages))
    probabilities = [exp(fmean(a[index] for a in answers if index in a)) for index in order] + [0.0] * len(below)
    return Ranking(record, (*order, *below), tuple(decoded), tuple(dealt), tuple(probabilities))


def strengths(answers: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Each passage's strength s in nats, where log p of being chosen in a window is s - c, with c the window's own.

    So a passage does not pay for strong company (Luce 1959: c = log sum exp s). Least squares with each c at its best;
    of solutions that are as good, the nearest to 0: windows that share no passages are alike in their means.

    Args:
        answers: of each window, its passages and log p.
    """
    import numpy as np

    passages = sorted({passage for answer in answers for passage in answer})
    column = {passage: number for number, passage in enumerate(passages)}
    normal, right = np.zeros((len(passages), len(passages))), np.zeros(len(passages))
    for answer in answers:
        at, logps = [column[passage] for passage in answer], np.array([*answer.values()])
        normal[np.ix_(at, at)] += np.eye(len(at)) - 1 / len(at)
        right[at] += logps - logps.mean()
    inverse = np.linalg.pinv(normal, rcond=NOTHING, hermitian=True)
    return dict(zip(passages, (inverse @ right).tolist(), strict=True))
