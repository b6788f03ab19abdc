"""Permutation self-consistency (Tang et al. 2024): a window read in several random orders, and one order of them all.

What a model prefers because of where a passage stands cancels out; what it prefers because of what it says remains.
"""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from math import exp, factorial, log
from typing import Any, Literal

from data_modules.records import Window
from lit_rerank.decoder import Decoded, Decoder
from lit_rerank.errors import UserError

MOST = 40  # passages whose order of least disagreement is found in seconds
MOST_SHUFFLES = 1000

Order = tuple[int, ...]
Aggregate = Literal["kemeny", "borda"]


class SelfConsistent:
    """A decoder that is asked several times about every window.

    Args:
        decoder: orders the shuffled windows; all shuffles of all windows share its batches.
        shuffles: how often each window is read.
        aggregate: what the orders become (see `kemeny`, `borda`).
        seed: of the shuffles.
    """

    def __init__(self, decoder: Decoder, shuffles: int, aggregate: Aggregate = "kemeny", seed: int = 0) -> None:
        if not 2 <= shuffles <= MOST_SHUFFLES:
            raise UserError(f"self_consistency is {shuffles}; it takes 2 to {MOST_SHUFFLES} shuffles")
        check_aggregate(aggregate)
        self.decoder, self.shuffles, self.aggregate, self.seed = decoder, shuffles, AGGREGATES[aggregate], seed

    def __call__(
        self,
        windows: Sequence[Window],
        choices: Sequence[int] | None = None,
        progress: Callable[[int], object] = lambda count: None,
    ) -> list[Decoded]:
        """As `Decoder` has it; a window is done when it has been read in all its orders.

        All choices are made, however few matter: every place of an order has a say in what the orders become.
        """
        if self.aggregate is kemeny:
            check_size(max(map(len, windows), default=0))
        places = [order for window in windows for order in self._shuffled(window)]
        shown = [_reordered(windows[i // self.shuffles], order) for i, order in enumerate(places)]
        finished = 0

        def advance(count: int) -> None:
            nonlocal finished
            progress((finished + count) // self.shuffles - finished // self.shuffles)
            finished += count

        decoded = self.decoder(shown, [len(window) for window in shown], advance)
        back = [_in_the_windows_order(one, order) for one, order in zip(decoded, places, strict=True)]
        groups = [back[i : i + self.shuffles] for i in range(0, len(back), self.shuffles)]
        return [self._aggregated(group) for group in groups]

    def _shuffled(self, window: Window) -> list[Order]:
        """So many orders; none comes again before all have come."""
        n, docids = len(window), [passage.docid for passage in window.passages]
        draw, orders = random.Random(f"{self.seed} {window.qid} {docids}"), list[Order]()
        while len(orders) < self.shuffles:
            order = tuple(draw.sample(range(1, n + 1), n))
            if orders.count(order) <= len(orders) // factorial(n):
                orders.append(order)
        return orders

    def _aggregated(self, group: Sequence[Decoded]) -> Decoded:
        """One order; each passage's probability is the mean of those that it got."""
        permutation = self.aggregate([one.permutation for one in group])
        malformed = any(one.malformed for one in group)
        chances = [dict(zip(one.permutation, one.logps, strict=True)) for one in group if one.logps is not None]
        if len(chances) < len(group):
            return Decoded(permutation, malformed=malformed)
        means = [sum(exp(chance[i]) for chance in chances) / len(chances) for i in permutation]
        return Decoded(permutation, tuple(log(max(mean, 1e-300)) for mean in means), malformed=malformed)


def borda(orders: Sequence[Order]) -> Order:
    """By the mean of each passage's ranks; of equals, the lower identifier first."""
    ranks = [{i: rank for rank, i in enumerate(order)} for order in orders]
    return tuple(sorted(orders[0], key=lambda i: (sum(rank[i] for rank in ranks), i)))


def check_size(n: int) -> None:
    """Raise a UserError where windows are too large for `kemeny`."""
    if n > MOST:
        raise UserError(f"kemeny takes windows of up to {MOST} passages, not {n}: take borda for them")


def kemeny(orders: Sequence[Order]) -> Order:
    """The order with the least sum of Kendall distances to all orders (of equal ones, any).

    Exact, by an integer program over pairs: a fraction of a second for 20 passages, seconds for 40.

    Raises:
        UserError: for more than 40.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_array

    first = borda(orders)
    check_size(len(first))
    n, ranks = len(first), [{i: rank for rank, i in enumerate(order)} for order in orders]
    # Which pairs stand the other way round than in Borda's order, and how many orders would lose by that.
    pairs = list(combinations(range(n), 2))
    index = {pair: number for number, pair in enumerate(pairs)}
    costs = [sum(1 if rank[first[a]] < rank[first[b]] else -1 for rank in ranks) for a, b in pairs]
    if min(costs, default=0) >= 0:  # no majority is against it
        return first
    triples = list(combinations(range(n), 3))
    constraints: list[Any] = []
    if triples:
        circles = lil_array((len(triples), len(pairs)))
        for row, (a, b, c) in enumerate(triples):
            circles[row, index[a, b]], circles[row, index[b, c]], circles[row, index[a, c]] = 1, 1, -1
        constraints = [LinearConstraint(circles.tocsr(), 0, 1)]
    solved = milp(costs, integrality=1, bounds=Bounds(0, 1), constraints=constraints)
    turned = [round(value) for value in solved.x]
    before = [0] * n
    for number, (a, b) in enumerate(pairs):
        before[a if turned[number] else b] += 1
    return tuple(first[place] for place in sorted(range(n), key=before.__getitem__))


AGGREGATES: dict[str, Callable[[Sequence[Order]], Order]] = {"kemeny": kemeny, "borda": borda}


def check_aggregate(name: str) -> None:
    """Refuse what is no aggregate."""
    if name not in AGGREGATES:
        raise UserError(f"there is no aggregate {name!r}; choose one of: {', '.join(AGGREGATES)}")


def _reordered(window: Window, order: Order) -> Window:
    """The window's passages in another order."""
    return Window(window.qid, window.query, tuple(window.passages[i - 1] for i in order))


def _in_the_windows_order(decoded: Decoded, order: Order) -> Decoded:
    return Decoded(tuple(order[i - 1] for i in decoded.permutation), decoded.logps, malformed=decoded.malformed)
