"""Weighted mixtures: how many records an epoch takes of each source, and which."""

import math
import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from lit_rerank.errors import UserError


def quotas(sizes: Sequence[int], weights: Sequence[float] | None, total: int | None = None) -> list[int]:
    """How many records an epoch takes of each source, by weight (largest remainder).

    Args:
        sizes: how many each has.
        weights: their shares, of any sum; None: each source's records once.
        total: of an epoch; None: as many as there are records.
    """
    if weights is None:
        return list(sizes)
    total = sum(sizes) if total is None else total
    scale = -math.frexp(max(weights))[1]  # a power of two, which rounds nothing: no float holds the sum of the largest
    shares = [math.ldexp(weight, scale) for weight in weights]
    exact = [total * share / sum(shares) for share in shares]
    taken = [int(share) for share in exact]
    for i in sorted(range(len(exact)), key=lambda i: taken[i] - exact[i])[: total - sum(taken)]:
        taken[i] += 1
    return taken


def check_weights(weights: Sequence[float] | None, sources: int) -> None:
    """Raise a UserError unless there is a weight above 0 for each source, or none at all."""
    if weights is not None and (len(weights) != sources or not all(0 < weight < float("inf") for weight in weights)):
        raise UserError(f"weights {list(weights)} must be {sources} numbers above 0, one for each source")


def check_quotas(taken: Sequence[int], weights: Sequence[float] | None) -> None:
    """Raise a UserError where a source has a weight, but no record in an epoch."""
    if weights is not None and 0 in taken:
        number = taken.index(0)
        raise UserError(
            f"data.init_args.train: source {number + 1} of the mixture, of weight {weights[number]}, gives none of an "
            f"epoch's {sum(taken)} records: raise its weight, or leave it out"
        )


class Mixture:
    """Which record of several sources, one behind the other, stands at which place of an epoch.

    An epoch has as many places as there are records. With weights a source's records come in turn, each once before
    any comes again: such a *pass* need not end where an epoch does. Without, an epoch is a pass.

    Args:
        sizes: how many records each source has.
        weights: see `quotas`.
        seed: of the order within a pass.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.quotas = quotas(sizes, weights)
        self.ends = list(accumulate(self.quotas))
        self.starts = [0, *accumulate(sizes)]
        self._orders: list[dict[int, list[int]]] = [{} for _ in sizes]  # of each source, by pass

    def __len__(self) -> int:
        return sum(self.quotas)

    def record(self, epoch: int, place: int) -> tuple[int, int]:
        """The pass, and the record's number among all."""
        source = bisect(self.ends, place)
        quota, size = self.quotas[source], self.sizes[source]
        number = place - self.ends[source] + quota
        if quota == size:
            return epoch, self.starts[source] + number
        done, number = divmod(epoch * quota + number, size)
        return done, self.starts[source] + self._order(source, done)[number]

    def _order(self, source: int, done: int) -> list[int]:
        """A source's order in a pass; as many are kept as an epoch may touch."""
        orders, size = self._orders[source], self.sizes[source]
        if done not in orders:
            if len(orders) > self.quotas[source] // size + 1:
                del orders[next(iter(orders))]
            orders[done] = list(range(size))
            random.Random(f"{self.seed}/mixture/{source}/{done}").shuffle(orders[done])
        return orders[done]
