"""Rounds: a list is read in windows dealt at random, and ordered by what explains all answers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp
from statistics import fmean

from data_modules.records import RankingRecord, Window
from lit_rerank.chain import check_size
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError
from lit_rerank.ranking import Decode, Ranking

MOST_ROUNDS = 1000
NOTHING = 1e-10  # of the largest eigenvalue: what is less is 0, by rounding alone it can be 1e-16 of it


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
            _ranking(record, hands, [next(answers) for _ in hands])
            for record, hands in zip(records, dealt, strict=True)
        ]


def _ranking(record: RankingRecord, dealt: Sequence[tuple[int, ...]], decoded: Sequence[Decoded]) -> Ranking:
    """The candidates by the strength that explains all answers best; equals in their own order."""
    answers: list[dict[int, float]] = []
    for shown, answer in zip(dealt, decoded, strict=True):
        if answer.logps is None:
            raise UserError("rounds need the scores of all passages of a window, and this decoder gives none")
        answers.append({shown[i - 1]: logp for i, logp in zip(answer.permutation, answer.logps, strict=True)})
    found = strengths(answers)
    order = by_strength(found)
    below = range(len(order), len(record.passages))
    probabilities = [exp(fmean(a[index] for a in answers if index in a)) for index in order] + [0.0] * len(below)
    return Ranking(record, (*order, *below), tuple(decoded), tuple(dealt), tuple(probabilities), len(dealt))


def by_strength(found: Mapping[int, float]) -> list[int]:
    """The passages, the strongest first; equals in their own order."""
    return sorted(found, key=lambda passage: (-round(found[passage], 9), passage))


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
