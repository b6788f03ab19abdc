"""Drawing windows from records: every draw is a function of (seed, epoch, index)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DistributedSampler

from data_modules.records import RankingRecord, Window
from lit_rerank.errors import UserError


@dataclass
class Augmentation:
    """How windows are drawn from a record, as RankZephyr was trained.

    Attributes:
        min_size, max_size: passages in a window, drawn uniformly (as far as the record has so many).
        shuffle: whether the passages are shown in random order; otherwise in the record's.
        windows_per_record: how many windows an epoch draws from each record.
    """

    min_size: int = 2
    max_size: int = 20
    shuffle: bool = True
    windows_per_record: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.min_size <= self.max_size or self.windows_per_record < 1:
            raise UserError(
                f"augmentation: sizes {self.min_size}..{self.max_size} and {self.windows_per_record} windows a record; "
                "a window holds 2 passages or more, and every record gives one window or more"
            )

    def draw(self, record: RankingRecord, draw: random.Random) -> Window:
        """A window of random passages of `record`; where only its first places are known, those are among them."""
        n = len(record.passages)
        size = draw.randint(min(self.min_size, n), min(self.max_size, n))
        kept = [] if record.choices is None else [i - 1 for i in record.known[:size]]
        order = draw.sample([i for i in range(n) if i not in kept], size - len(kept))
        if kept:
            order = draw.sample(kept + order, size)
        return Window.of(record, order if self.shuffle else sorted(order))


def generator(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one draw."""
    return random.Random(f"{seed}/{epoch}/{index}")


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index), split over processes; shuffled by (seed, epoch), or the same in every epoch.

    With the epoch in the key, a dataset's draws need no state. Lightning calls `set_epoch`, and leaves this sampler
    alone because it is a DistributedSampler.
    """

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            super().set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in super().__iter__():
            yield self.epoch, index  # type: ignore[misc]
