"""What becomes of a list: its candidates in their new order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.decoder import Decoded

Decode = Callable[[Sequence[Window], Sequence[int]], Sequence[Decoded]]


@dataclass(frozen=True)
class Ranking:
    """A record's candidates in their new order.

    Attributes:
        order: indices into `record.passages`, best first.
        decoded: the answer to each window, in the order of reading.
        shown: each window's passages, as indices into `record.passages` in the order in which the model read them.
        probabilities: of each in `order`, how probable the choice was that put it there (see `Decoded.logps`); 0 for
            what was not reranked or read from a generated text. In rounds: the geometric mean over all windows.
        dealt: so many windows, the last ones, were dealt at random.
    """

    record: RankingRecord
    order: tuple[int, ...]
    decoded: tuple[Decoded, ...]
    shown: tuple[tuple[int, ...], ...]
    probabilities: tuple[float, ...]
    dealt: int = 0

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
