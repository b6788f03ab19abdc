"""Training examples from shards that are read while they are used: memory does not depend on how many there are.

Which examples a batch holds is a function of (seed, epoch, process, number of the batch). So a batch can be asked for
by its number, as a map-style dataset's can: any number of worker processes makes the same batches, and a resumed run
needs to know nothing but how many batches there were, on every process the same.

An epoch takes a *quota* of records from each source, and every process an equal share of each quota. A share is read in
blocks, which are shuffled whole: the shuffle buffer. A worker reads all blocks of its process in turn, and encodes the
batches that it is asked for; reading a record costs a small part of what encoding it does.
"""

import random
from array import array
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import Dataset

from data_modules.sources.base import Row
from data_modules.sources.shards import ShardsSource
from data_modules.windows import EpochSampler
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Make = Callable[[int], Any]  # encodes one of several examples, by its number from 0
UNKNOWN = 2**32  # records of a shard, at most, where their number is not known


class Draws(Protocol):
    """Examples of one source, numbered without end: when all have been drawn, the next pass begins."""

    def take(self, numbers: range) -> Make:
        """Those of the records with these numbers, in rising order, encoded when called."""


@dataclass(frozen=True)
class Part:
    """What an epoch takes of one source.

    Attributes:
        draws: its examples.
        quota: how many records' examples an epoch takes, on all processes together.
        examples: how many examples a record gives.
        apart: where nobody knows how many records there are, processes take turns, reading all; otherwise each reads
            a stretch of its own.
    """

    draws: Draws
    quota: int
    examples: int = 1
    apart: bool = False

    def share(self, epoch: int, process: int, processes: int) -> range:
        """The records of one process."""
        first = epoch * self.quota
        if self.apart:
            return range(first + process, first + self.quota, processes)
        start, stop = (first + i * self.quota // processes for i in (process, process + 1))
        return range(start, stop)


class Stream(Dataset[list[Any]]):
    """The batches of one process, by (epoch, number). All processes have as many; those that lack examples are empty.

    Args:
        parts: what an epoch takes of each source.
        processes, rank: how many processes there are, and which is this.
        batch_size: examples of a batch.
        buffer: records of a block.
        seed: of the shuffle.
    """

    def __init__(
        self, parts: Sequence[Part], processes: int, rank: int, batch_size: int, buffer: int, seed: int
    ) -> None:
        self.parts, self.processes, self.rank = parts, processes, rank
        self.batch_size, self.buffer, self.seed = batch_size, buffer, seed
        self._block: _Block | None = None  # the last that was read

    @property
    def examples(self) -> int:
        """Of an epoch, on all processes."""
        return sum(part.quota * part.examples for part in self.parts)

    def __len__(self) -> int:
        examples = max(
            sum(len(part.share(0, process, self.processes)) * part.examples for part in self.parts)
            for process in range(self.processes)
        )
        return -(-examples // self.batch_size)

    def __getitem__(self, key: tuple[int, int]) -> list[Any]:
        epoch, number = key
        shares = [part.share(epoch, self.rank, self.processes) for part in self.parts]
        blocks = max(1, -(-sum(map(len, shares)) // self.buffer))

        def before(block: int) -> int:
            """How many examples stand in earlier blocks: each has an equal part of every share."""
            return sum(
                len(share) * block // blocks * part.examples for share, part in zip(shares, self.parts, strict=True)
            )

        first = number * self.batch_size
        last = min(first + self.batch_size, before(blocks))
        batch: list[Any] = []
        while first + len(batch) < last:
            at = first + len(batch)
            block = bisect(range(1, blocks), at, key=before)
            read = self._read(
                epoch, block, [s[len(s) * block // blocks : len(s) * (block + 1) // blocks] for s in shares]
            )
            batch += map(read.make, read.order[at - before(block) : last - before(block)])
        return batch

    def _read(self, epoch: int, block: int, shares: Sequence[range]) -> "_Block":
        key = f"{self.seed}/{epoch}/{self.rank}/{block}"
        if self._block is None or self._block.key != key:
            self._block = None  # the old one goes before the new one comes
            self._block = _Block(self.parts, shares, key)
        return self._block


class _Block:
    """Examples that are shuffled together, held as the records that they are made from.

    Args:
        parts: whose examples they are.
        shares: the numbers of the records of each part.
        key: of the shuffle.

    Attributes:
        order: the examples' numbers, shuffled.
    """

    def __init__(self, parts: Sequence[Part], shares: Sequence[range], key: str) -> None:
        self.key = key
        self._makes = [part.draws.take(share) for part, share in zip(parts, shares, strict=True)]
        counts = (len(share) * part.examples for part, share in zip(parts, shares, strict=True))
        self._starts = list(accumulate(counts, initial=0))
        self.order = array("q", range(self._starts[-1]))
        random.Random(key).shuffle(self.order)

    def make(self, number: int) -> Any:
        """An example, by its number before the shuffle."""
        part = bisect(self._starts, number) - 1
        return self._makes[part](number - self._starts[part])


class StreamSampler(EpochSampler):
    """Asks for a stream's batches in turn."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, num_replicas=1, rank=0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, number) for number in range(len(self)))


@dataclass
class _Chunk:
    """Records that follow each other in a shard, and the number of the first among all that are drawn."""

    start: int
    table: "pa.Table"
    done: int
    shard: int
    first: int

    @property
    def stop(self) -> int:
        return self.start + self.table.num_rows


class Passes:
    """The records of shards, pass after pass, in each the shards in another order.

    It goes on where it was asked for the last time, and opens a shard anew for anything else.

    Args:
        source: the shards.
        example: makes an example of (row, pass, index).
        per_record: how many examples a record gives.
        index: of the first record; others count on from there, in the order of the shards.
        seed: of the shards' order.
    """

    def __init__(
        self, source: ShardsSource, example: Callable[[Row, int, int], Any], per_record: int, index: int, seed: int
    ) -> None:
        self.source, self.example, self.per_record, self.seed = source, example, per_record, seed
        self._counts = list(source.counts)
        known = (UNKNOWN if count is None else count for count in source.counts)
        self._first = list(accumulate(known, initial=index))  # the indices of the shards' first records
        self._chunks: Iterator[_Chunk] = iter(())
        self._chunk: _Chunk | None = None
        self._stop = 0.0  # where the shard ends that is read

    def take(self, numbers: range) -> Make:
        """See `Draws`: so many examples of each of these records."""
        chunks: list[_Chunk] = []
        firsts, taken = [], 0  # of each chunk, which of the records is its first
        while taken < len(numbers):
            chunk = self._find(numbers[taken])
            mine = range(numbers[taken] - chunk.start, min(chunk.stop, numbers.stop) - chunk.start, numbers.step)
            # Of processes that take turns each keeps its own rows alone.
            chunks.append(replace(chunk, table=chunk.table.take(list(mine))))
            firsts.append(taken)
            taken += len(mine)

        def make(example: int) -> Any:
            record, k = divmod(example, self.per_record)
            part = bisect(firsts, record) - 1
            chunk, row = chunks[part], record - firsts[part]
            number = chunk.first + numbers[record] - chunk.start
            content = self.source.decode(chunk.table, row, chunk.shard, number)
            return self.example(content, chunk.done, (self._first[chunk.shard] + number) * self.per_record + k)

        return make

    def _find(self, number: int) -> _Chunk:
        """The chunk that holds a record."""
        while self._chunk is None or not self._chunk.start <= number < self._chunk.stop:
            if self._chunk is None or number < self._chunk.start or number >= self._stop:
                self._open(number)
            self._chunk = next(self._chunks, None)
        return self._chunk

    def _open(self, number: int) -> None:
        """Begin to read the shard that holds a record, or the first that may hold it."""
        if None not in self._counts and not any(self._counts):
            raise UserError(f"{self.source.path} holds no record")
        done, start = 0, 0
        if None not in self._counts:
            done = number // sum(self._counts)  # type: ignore[arg-type]
            start = done * sum(self._counts)  # type: ignore[arg-type]
        while True:
            for shard in random.Random(f"{self.seed}/shards/{done}").sample(
                range(len(self._counts)), len(self._counts)
            ):
                count = self._counts[shard]
                self._stop = float("inf") if count is None else start + count
                if number < self._stop:
                    self._chunks = self._read(done, shard, start)
                    return
                start = int(self._stop)
            done += 1

    def _read(self, done: int, shard: int, start: int) -> Iterator[_Chunk]:
        first = 0
        for table in self.source.tables(shard):
            yield _Chunk(start + first, table, done, shard, first)
            first += table.num_rows
        self._counts[shard] = first
