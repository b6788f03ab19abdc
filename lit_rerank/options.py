"""A choice among identifiers, as what must be asked of a model to make it.

Identifiers are one or more tokens, and none begins another: they are the leaves of a tree of tokens. A model is asked
only where the tree branches; elsewhere there is nothing to choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from lit_rerank.chat import Ids
from lit_rerank.packing import Packer


@dataclass(frozen=True)
class Options:
    """What may be chosen at one place, and where the answers are that decide it.

    Attributes:
        options: the tokens of each.
        branchings: for each beginning that more than one token continues, which answer tells log p of each of these.
    """

    options: tuple[Ids, ...]
    branchings: dict[Ids, dict[int, int]]

    @classmethod
    def ask(cls, packer: Packer, trunk: int, length: int, options: Sequence[Ids]) -> "Options":
        """Add to the packer's questions what decides between options after `length` tokens of a trunk."""
        following: dict[Ids, set[int]] = {}
        for ids in options:
            for depth, token in enumerate(ids):
                following.setdefault(ids[:depth], set()).add(token)
        branchings = {
            beginning: {token: packer.ask(trunk, length, token, beginning) for token in sorted(tokens)}
            for beginning, tokens in following.items()
            if len(tokens) > 1
        }
        return cls(tuple(options), branchings)

    def logps(self, answers: Sequence[float]) -> list[float]:
        """Log-probability of each option among them all: token by token, among those that lead to an option."""
        tokens = {
            (*beginning, token): answers[i] - _logsumexp([answers[j] for j in going_on.values()])
            for beginning, going_on in self.branchings.items()
            for token, i in going_on.items()
        }
        return [sum(tokens.get(ids[: depth + 1], 0.0) for depth in range(len(ids))) for ids in self.options]

    def greedy(self, answers: Sequence[float]) -> int:
        """The option (0-based) reached by the likeliest token at every branching; of equal ones, the lowest id."""
        path: Ids = ()
        while path not in self.options:
            going_on = self.branchings.get(path)
            if going_on:
                path += (max(going_on, key=lambda token: answers[going_on[token]]),)
            else:
                path = next(ids[: len(path) + 1] for ids in self.options if ids[: len(path)] == path)
        return self.options.index(path)


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + log(sum(exp(value - most) for value in values))
