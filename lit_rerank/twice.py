"""Sliding windows first, then the best of the list once more in rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_modules.records import RankingRecord
from lit_rerank.fusion import reciprocal
from lit_rerank.ranking import Decode, Ranking
from lit_rerank.rounds import Rounds
from lit_rerank.sliding import SlidingWindow

BEST = 20  # of a list are read again: twice what nDCG@10 looks at


@dataclass(frozen=True)
class Twice:
    """How a list is slid over, and its best are then read again in rounds of half as large windows.

    Sliding goes by all choices, and is led by the order that it finds; rounds go by first choices, and see nothing of
    any order. Their mistakes differ, so both orders are fused by reciprocal ranks. The decoder is one that makes
    choices (`Stepwise` or `First`). What ends up below the best costs no choices, as below a `top_k`.

    Attributes:
        window: most passages in one prompt.
        stride: how far the window moves up each time.
        depth: how many candidates, from the top of the list, are reranked; the others keep their order below.
        rounds: how often each of the best is read again.
    """

    window: int = 8
    stride: int = 4
    depth: int = 100
    rounds: int = 4

    def __post_init__(self) -> None:
        self.sliding, self.again  # noqa: B018 (refuse what makes no sense)

    @property
    def sliding(self) -> SlidingWindow:
        return SlidingWindow(self.window, self.stride, self.depth, top_k=BEST)

    @property
    def again(self) -> Rounds:
        return Rounds(max(2, self.window // 2), min(BEST, self.depth), self.rounds)

    def windows(self, n: int) -> int:
        """How many windows a list of `n` candidates is read in."""
        return self.sliding.windows(n) + self.again.windows(n)

    def choices(self, n: int) -> list[int]:
        """How many choices of each window matter."""
        return self.sliding.choices(n) + self.again.choices(n)

    def first(self, record: RankingRecord) -> tuple[int, ...]:
        """The window that is read first, as indices into the record's passages."""
        return self.sliding.first(record)

    def rerank(self, records: Sequence[RankingRecord], decode: Decode) -> list[Ranking]:
        """Rerank the candidates of every record."""
        slid = self.sliding.rerank(records, decode)
        again = self.again.rerank([_reordered(ranking) for ranking in slid], decode)
        return [self._fused(*both) for both in zip(slid, again, strict=True)]

    def _fused(self, slid: Ranking, again: Ranking) -> Ranking:
        """Both orders as one; `again` is of the list in the order that `slid` gave it."""
        passages, best = again.record.passages, min(self.again.depth, len(again.order))
        docids = [passage.docid for passage in passages[:best]]
        fused = reciprocal([docids, [docids[i] for i in again.order[:best]]])
        order = (*map(docids.index, fused), *range(best, len(passages)))
        probable = (*_by_place(again)[:best], *slid.probabilities[best:])
        return Ranking(
            slid.record,
            tuple(slid.order[i] for i in order),
            slid.decoded + again.decoded,
            slid.shown + tuple(tuple(slid.order[i] for i in shown) for shown in again.shown),
            tuple(probable[i] for i in order),
            again.dealt,
        )


def _by_place(ranking: Ranking) -> list[float]:
    """How probable each of the record's passages was, as they stand there."""
    return [probability for _, probability in sorted(zip(ranking.order, ranking.probabilities, strict=True))]


def _reordered(ranking: Ranking) -> RankingRecord:
    """The record with its candidates in their new order; what a teacher said is left out."""
    passages = tuple(ranking.record.passages[i] for i in ranking.order)
    return replace(ranking.record, passages=passages, permutation=None, choices=None)
