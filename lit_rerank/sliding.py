"""Sliding windows: a list is read from its end to its start."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

from data_modules.records import RankingRecord, Window
from lit_rerank.chain import check_size
from lit_rerank.decoder import Decoded
from lit_rerank.errors import UserError
from lit_rerank.ranking import Decode, Ranking


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
