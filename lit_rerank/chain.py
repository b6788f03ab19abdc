"""The formats: the prompt, how a permutation is written as text, where its choices are, how text is read back.

Nothing else in the project knows how a format is spelled. Pure Python: no tokenizer, no tensor.

`chain` (ChainRank-DPO, arXiv 2412.14405)      `direct` (RankGPT, RankZephyr)

    Step 1: [4]                                     [4] > [2] > [1]
    Step 2: [4] > [2]
    Step 3: [4] > [2] > [1]
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from lit_rerank.errors import UserError

MAX_IDENTIFIER = 100

_IDENTIFIER = re.compile(r"(?<![0-9])([0-9]++)\s*+\]")  # possessive: linear on any text
_STEP = re.compile(r"^[^\w\n]*+Step\b[^:\n]*:(.*)$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """A permutation written out.

    Attributes:
        text: what the model should answer.
        choices: for each newly chosen identifier, in order, the characters `[start, end)` of `text`
            that hold its digits and its closing bracket (the opening bracket follows from the text before).
    """

    text: str
    choices: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Parsed:
    """What a text says about the order of `n` passages, repaired into a permutation.

    Attributes:
        permutation: identifiers (1-based), best first; always each of 1..n once.
        missing: identifiers that the text lacks; they were appended in input order.
        repeated: mentions after an identifier's first; they were dropped.
        out_of_range: mentions that name no passage; they were dropped.
    """

    permutation: tuple[int, ...]
    missing: int = 0
    repeated: int = 0
    out_of_range: int = 0

    @property
    def malformed(self) -> bool:
        """Whether any repair was needed."""
        return bool(self.missing or self.repeated or self.out_of_range)


class Format(ABC):
    """One way to ask for a ranking and to write it. Stateless."""

    name: str
    system = "You are a careful assistant that orders passages by how relevant they are to a query."
    instruction: str

    def user(self, query: str, passages: Sequence[str], repeat_identifier: bool = False) -> str:
        """The user's turn: the task, the query, the passages with their identifiers `[1]..[n]`, the query again.

        The task comes first and is the same for every window, so that it is read once for many of them. With
        `repeat_identifier` each identifier also follows its passage, which small models bind more easily.
        """
        check_size(len(passages))
        listed = "\n".join(
            f"[{i}] {text} [{i}]" if repeat_identifier else f"[{i}] {text}" for i, text in enumerate(passages, start=1)
        )
        return f"{self.instruction}\n\nQuery: {query}\n\n{listed}\n\nQuery: {query}"

    @abstractmethod
    def render(self, permutation: Sequence[int]) -> Completion:
        """Write `permutation` (identifiers, best first) as the model's answer."""

    @abstractmethod
    def parse(self, text: str, n: int) -> Parsed:
        """Read the order of `n` passages out of any text, repairing what is missing or wrong."""


class DirectFormat(Format):
    """The permutation at once, as in RankGPT and RankZephyr."""

    name = "direct"
    instruction = (
        "Each passage below is marked with an identifier in square brackets. List all identifiers from the passage "
        "most relevant to the query to the least relevant one, in the form [4] > [2] > ... "
        "Write the list and nothing else."
    )

    def render(self, permutation: Sequence[int]) -> Completion:
        check_size(len(permutation))
        writer = _Writer()
        for rank, identifier in enumerate(permutation):
            writer.write(" > " if rank else "")
            writer.choose(identifier)
        return writer.completion()

    def parse(self, text: str, n: int) -> Parsed:
        return _repair(_IDENTIFIER.findall(text), n)


class ChainFormat(Format):
    """Step by step: the best remaining passage, after all those chosen so far."""

    name = "chain"
    instruction = (
        "Each passage below is marked with an identifier in square brackets. Order the passages by their relevance to "
        "the query, in steps: at each step pick the most relevant passage among those that remain and append its "
        "identifier to the ones picked before, in the form Step 2: [4] > [2]. "
        "Go on until all passages are ordered. Write the steps and nothing else."
    )

    def render(self, permutation: Sequence[int]) -> Completion:
        check_size(len(permutation))
        writer = _Writer()
        for step, identifier in enumerate(permutation):
            chosen = "".join(f"[{i}] > " for i in permutation[:step])
            newline = "\n" if step else ""
            writer.write(f"{newline}Step {step + 1}: {chosen}")
            writer.choose(identifier)
        return writer.completion()

    def parse(self, text: str, n: int) -> Parsed:
        """The step that names the most passages counts (the later one of equals); without any, the whole text."""
        steps = [mentions for step in _STEP.findall(text) if (mentions := _IDENTIFIER.findall(step))]
        parsed = [_repair(mentions, n) for mentions in reversed(steps or [_IDENTIFIER.findall(text)])]
        return min(parsed, key=lambda p: p.missing)


FORMATS: dict[str, Format] = {form.name: form for form in (ChainFormat(), DirectFormat())}


def get_format(name: str) -> Format:
    """The format called `name`."""
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; choose one of: {', '.join(FORMATS)}")
    return FORMATS[name]


def check_size(n: int) -> None:
    """Raise a UserError where a window of so many passages would have more than there are identifiers."""
    if n > MAX_IDENTIFIER:
        raise UserError(f"a window of {n} passages is too large: identifiers go up to [{MAX_IDENTIFIER}]")


def no_skill_loss(n: int, choices: int | None = None) -> float:
    """Cross-entropy per choice, in nats, of guessing uniformly among what remains: ln(n!)/n for all n choices."""
    count = n if choices is None else min(choices, n)
    return sum(log(n - k) for k in range(count)) / count


class _Writer:
    """Builds a completion and notes where its choices are."""

    def __init__(self) -> None:
        self._text = ""
        self._choices: list[tuple[int, int]] = []

    def write(self, text: str) -> None:
        self._text += text

    def choose(self, identifier: int) -> None:
        self._text += "["
        start = len(self._text)
        self._text += f"{identifier}]"
        self._choices.append((start, len(self._text)))

    def completion(self) -> Completion:
        return Completion(self._text, tuple(self._choices))


def _repair(mentions: Sequence[str], n: int) -> Parsed:
    """A permutation of 1..n from mentioned digits: first mentions in order, then what is missing in input order."""
    check_size(n)
    longest = len(str(MAX_IDENTIFIER))
    numbers = [int(digits) if len(digits) <= longest else 0 for digits in mentions]
    counts = Counter(i for i in numbers if 1 <= i <= n)
    missing = [i for i in range(1, n + 1) if i not in counts]
    return Parsed(
        permutation=(*counts, *missing),
        missing=len(missing),
        repeated=sum(counts.values()) - len(counts),
        out_of_range=len(numbers) - sum(counts.values()),
    )
