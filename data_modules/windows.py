"""Drawing windows from records: every draw is a function of (seed, epoch, index)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import cycle, islice
from typing import Protocol

import torch
from torch.utils.data import DistributedSampler

from data_modules.records import RankingRecord, Window
from lit_rerank.chain import check_size
from lit_rerank.errors import UserError

CHARACTERS_PER_TOKEN = 4  # roughly
MOST_WINDOWS = 100_000  # of a record in an epoch


@dataclass
class Augmentation:
    """How windows are drawn from a record, as RankZephyr was trained.

    Attributes:
        min_size, max_size: passages in a window, drawn uniformly (as far as the record has so many).
        shuffle: show a window's passages in random order, not in the record's.
        windows_per_record: how many windows an epoch draws from each record.
    """

    min_size: int = 2
    max_size: int = 20
    shuffle: bool = True
    windows_per_record: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.min_size <= self.max_size or not 1 <= self.windows_per_record <= MOST_WINDOWS:
            raise UserError(
                f"augmentation: sizes {self.min_size}..{self.max_size} and {self.windows_per_record} windows a record; "
                f"a window holds 2 passages or more, and every record gives 1 to {MOST_WINDOWS:,} windows"
            )
        check_size(self.max_size)

    def draw(self, record: RankingRecord, draw: random.Random) -> Window:
        """A window of random passages of `record`; where only its first places are known, those are among them."""
        n = len(record.passages)
        size = self.size(n, draw)
        kept = [] if record.choices is None else [i - 1 for i in record.known[:size]]
        order = draw.sample([i for i in range(n) if i not in kept], size - len(kept))
        if kept:
            order = draw.sample(kept + order, size)
        return Window.of(record, order if self.shuffle else sorted(order))

    def size(self, n: int, draw: random.Random) -> int:
        """How many passages a window holds of a record's `n`: the first thing that is drawn."""
        return draw.randint(min(self.min_size, n), min(self.max_size, n))


def generator(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one draw."""
    return random.Random(f"{seed}/{epoch}/{index}")


class Examples(Protocol):
    """Examples by (epoch, index)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int], /) -> object: ...

    def length(self, key: tuple[int, int], /) -> int:
        """Roughly how many tokens an example takes, found without encoding it."""


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) in the same order in every epoch, split over processes.

    With the epoch in the key, a dataset's draws need no state. Lightning calls `set_epoch`, and leaves this sampler
    alone because it is a DistributedSampler.
    """

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            super().set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in super().__iter__():
            yield self.epoch, index  # type: ignore[misc]


class BucketSampler(EpochSampler):
    """As `EpochSampler`, shuffled by (seed, epoch), with rows of like length in each optimizer step.

    An optimizer step reads its examples in rows: `accumulate` batches on every process. Which examples are a step's is
    the shuffle's business alone; among its rows they are dealt by length, so that no process waits for the others and
    no row needs much more memory than the next.

    Args:
        examples: what is drawn from.
        processes, rank: how many processes there are, and which is this.
        batch_size: examples of a row.
        accumulate: rows of a step on one process.
    """

    def __init__(
        self, examples: Examples, processes: int, rank: int, seed: int, batch_size: int, accumulate: int = 1
    ) -> None:
        super().__init__(examples, processes, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.examples, self.batch_size, self.accumulate = examples, batch_size, accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        keys = [(self.epoch, index) for index in islice(cycle(order.tolist()), self.total_size)]
        per_step = self.num_replicas * self.accumulate * self.batch_size
        for start in range(0, len(keys), per_step):
            yield from self._own_rows(keys[start : start + per_step])

    def _own_rows(self, step: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """This process's part of an optimizer step, row after row."""
        share = len(step) // self.num_replicas
        sizes = [min(self.batch_size, share - start) for start in range(0, share, self.batch_size)]
        rows = deal([self.examples.length(key) for key in step], sizes * self.num_replicas)
        for row in rows[self.rank * len(sizes) :][: len(sizes)]:
            yield from (step[i] for i in row)


def deal(lengths: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Deals examples into rows of given sizes, the longest first and each to the shortest row that has room.

    Returns:
        The examples' numbers in each row, in rising order; all are dealt if there is room.
    """
    rows: list[list[int]] = [[] for _ in sizes]
    with_room = [(0, number) for number in range(len(sizes))]  # a heap of each row's length so far
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length, number = heappop(with_room)
        rows[number].append(i)
        if len(rows[number]) < sizes[number]:
            heappush(with_room, (length + lengths[i], number))
    return [sorted(row) for row in rows]
