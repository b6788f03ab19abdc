"""What every source yields and every consumer takes: a ranking record, and a window drawn from it."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lit_rerank.errors import UserError


@dataclass(frozen=True)
class Passage:
    """One candidate text. `score` is the first stage's, where it is known."""

    docid: str
    text: str
    score: float | None = None


@dataclass(frozen=True)
class RankingRecord:
    """One query with its candidates, and what is known about their order.

    Attributes:
        passages: in first-stage (or prompt) order; the one at index `i` has the identifier `i + 1`.
        permutation: the teacher's order as identifiers (1-based), best first, or None.
        choices: only the first so many places of the permutation are known; None: all.
        qrels: judged grades by docid, or None where nothing is judged.

    Raises:
        UserError: for an empty query, no passages, a repeated docid, a broken permutation or broken choices.
    """

    qid: str
    query: str
    passages: tuple[Passage, ...]
    permutation: tuple[int, ...] | None = None
    choices: int | None = None
    qrels: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise UserError(f"query {self.qid!r} has no text")
        if not self.passages:
            raise UserError(f"query {self.qid!r} has no passages")
        docid, count = Counter(passage.docid for passage in self.passages).most_common(1)[0]
        if count > 1:
            raise UserError(f"query {self.qid!r} lists docid {docid!r} {count} times")
        if self.permutation is not None:
            check_permutation(self.permutation, len(self.passages), self.qid)
        if self.choices is not None and not 1 <= self.choices <= len(self.permutation or ()):
            raise UserError(
                f"query {self.qid!r}: choices is {self.choices}; it counts places of the permutation, from 1 on"
            )

    @property
    def known(self) -> tuple[int, ...]:
        """The part of the permutation that is known; nothing where there is none."""
        return (self.permutation or ())[: self.choices]

    def shuffled(self, seed: int, depth: int | None = None) -> "RankingRecord":
        """The same candidates, the first `depth` (None: all) in random order, a function of `seed` and qid; what a
        teacher said is left out."""
        upper = self.passages[:depth]
        passages = random.Random(f"{seed}/{self.qid}").sample(upper, len(upper))
        return replace(self, passages=(*passages, *self.passages[len(upper) :]), permutation=None, choices=None)


@dataclass(frozen=True)
class Window:
    """The passages that a model reads in one prompt, in prompt order.

    Attributes:
        permutation: the target order as identifiers (1-based) of this window, best first, or None.
        choices: only the first so many places of the permutation are known; None: all.
        grades: judged grades of the passages, 0 where one has none, or None where nothing is judged.
    """

    qid: str
    query: str
    passages: tuple[Passage, ...]
    permutation: tuple[int, ...] | None = None
    choices: int | None = None
    grades: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.passages)

    @classmethod
    def of(cls, record: RankingRecord, order: Sequence[int]) -> "Window":
        """The passages of `record` at the indices `order` (0-based), shown in that order.

        The teacher's order of the chosen passages carries over to their new identifiers, as far as it is known.
        """
        permutation = choices = None
        if record.permutation is not None:
            identifier = {index: position for position, index in enumerate(order, start=1)}
            permutation = tuple(identifier[i - 1] for i in record.permutation if i - 1 in identifier)
            if record.choices is not None:
                choices = sum(i - 1 in identifier for i in record.known)
        passages = tuple(record.passages[i] for i in order)
        grades = None if record.qrels is None else tuple(record.qrels.get(p.docid, 0) for p in passages)
        return cls(record.qid, record.query, passages, permutation, choices, grades)

    @property
    def gains(self) -> tuple[float, ...]:
        """What each passage is worth, in the order of the permutation.

        Its grade where any of them is judged relevant, else (n - rank) / (n - 1); passages whose rank is not known
        share theirs.
        """
        if self.permutation is None:
            return ()
        if self.grades is not None and max(self.grades) > 0:
            return tuple(float(max(0, self.grades[i - 1])) for i in self.permutation)
        n = len(self)
        known = n if self.choices is None else self.choices
        ranks = [rank if rank <= known else (known + 1 + n) / 2 for rank in range(1, n + 1)]
        return tuple((n - rank) / max(1, n - 1) for rank in ranks)


def check_permutation(permutation: Sequence[int], n: int, qid: str) -> None:
    """Raise a UserError unless `permutation` holds each of the identifiers 1..n exactly once."""
    counts = Counter(permutation)
    for name, identifiers in (
        ("lacks", [i for i in range(1, n + 1) if i not in counts]),
        ("repeats", [i for i, count in counts.items() if count > 1]),
        ("goes out of range with", [i for i in counts if not 1 <= i <= n]),
    ):
        if identifiers:
            shown = ", ".join(f"[{i}]" for i in identifiers[:3]) + (", ..." if len(identifiers) > 3 else "")
            raise UserError(f"the permutation of query {qid!r} ({n} passages) {name} {shown}")
