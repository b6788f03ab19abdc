"""Step preferences: at each step of a chain, the teacher's identifier against wrong ones that remain."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Literal

from data_modules.records import Window
from lit_rerank.chat import Ids
from lit_rerank.encoding import EncodedWindow, WindowEncoder
from lit_rerank.errors import UserError

Pick = Literal["hardest", "on_policy"]


@dataclass(frozen=True)
class Preference:
    """Of a sequence, the tokens from `start` to before `end` are preferred, in their place, to each of `rejected`.

    Attributes:
        step: which choice of the window this is (1-based); 1 for whole completions.
        lost: for each of `rejected`, the nDCG that choosing it costs (see `ndcg_lost`).
    """

    start: int
    end: int
    rejected: tuple[Ids, ...]
    step: int
    lost: tuple[float, ...]


@dataclass(frozen=True)
class PreferenceExample:
    """The preferences of one window (or of one ready-made pair).

    Attributes:
        ids: the sequence that holds what is chosen: the prompt and the teacher's answer.
        pick: None to use every rejected completion; otherwise the reference model picks among them:
            `hardest` the one it likes most; `on_policy` its own choice (the likeliest as a whole,
            where identifiers have several tokens), and no preference where that is the teacher's.
        window: what it was made of, where that was a window.
    """

    qid: str
    ids: Ids
    preferences: tuple[Preference, ...]
    pick: Pick | None = None
    window: Window | None = None

    @classmethod
    def pair(
        cls, qid: str, state: Ids, chosen: Ids, rejected: Ids, window: Window | None = None
    ) -> "PreferenceExample":
        """After `state`, one whole completion is preferred to another.

        Raises:
            UserError: if there is no state: a first token has no probability.
        """
        if not state:
            raise UserError(f"pair {qid}: its prompt holds no token that stands before both answers")
        ids = state + chosen
        return cls(qid, ids, (Preference(len(state), len(ids), (rejected,), step=1, lost=(1.0,)),), window=window)

    def narrowed(self, kept: Sequence[Sequence[int]]) -> "PreferenceExample":
        """Only these (0-based) of each preference's rejected completions; a preference without any is left out."""
        preferences = tuple(
            replace(p, rejected=tuple(p.rejected[i] for i in some), lost=tuple(p.lost[i] for i in some))
            for p, some in zip(self.preferences, kept, strict=True)
            if some
        )
        return PreferenceExample(self.qid, self.ids, preferences, window=self.window)


@dataclass(frozen=True)
class Negatives:
    """Which wrong completions stand against the teacher's: `on_policy | hardest | sampled:m | all | sequence`."""

    mode: str
    count: int | None = None

    def __str__(self) -> str:
        return self.mode if self.count is None else f"{self.mode}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Negatives":
        """Read the setting.

        Raises:
            UserError: for anything else.
        """
        mode, _, count = text.partition(":")
        if mode == "sampled" and re.fullmatch("0*[1-9][0-9]{0,8}", count):
            return cls(mode, int(count))
        if mode in ("on_policy", "hardest", "all", "sequence") and not count:
            return cls(mode)
        raise UserError(f"negatives {text!r}: choose on_policy, hardest, sampled:m (as in sampled:2), all or sequence")

    def example(self, encoded: EncodedWindow, encoder: WindowEncoder, draw: random.Random) -> PreferenceExample:
        """The preferences of a window; `draw` decides what is sampled."""
        if self.mode == "sequence" and len(encoded.choices) > 1:
            return sequence_preference(encoded, encoder, draw)
        preferences = step_preferences(encoded, encoder)
        pick: Pick | None = self.mode if self.mode in ("hardest", "on_policy") else None  # type: ignore[assignment]
        example = PreferenceExample(encoded.window.qid, encoded.ids, preferences, pick, encoded.window)
        if self.mode != "sampled":
            return example
        numbers = [range(len(preference.rejected)) for preference in preferences]
        return example.narrowed([draw.sample(some, min(self.count or 1, len(some))) for some in numbers])


def step_preferences(encoded: EncodedWindow, encoder: WindowEncoder) -> tuple[Preference, ...]:
    """One preference for each supervised step but the window's last, against every wrong identifier that remains."""
    choices, gains = encoded.choices, encoded.window.gains
    return tuple(
        Preference(
            start=choice.start,
            end=choice.end,
            rejected=tuple(encoder.identifier_ids(later.identifier) for later in choices[step:]),
            step=step,
            lost=tuple(ndcg_lost(gains, step, later) for later in range(step + 1, len(choices) + 1)),
        )
        for step, choice in enumerate(choices[:-1][: encoded.supervised], start=1)
    )


def sequence_preference(encoded: EncodedWindow, encoder: WindowEncoder, draw: random.Random) -> PreferenceExample:
    """The teacher's completion against that of a random other order, both as far as the teacher is trusted."""
    permutation, trusted = tuple(choice.identifier for choice in encoded.choices), encoded.supervised
    wrong = permutation
    while wrong[:trusted] == permutation[:trusted]:
        wrong = tuple(draw.sample(permutation, len(permutation)))
    rejected = encoder.encode(replace(encoded.window, permutation=wrong), trusted)
    state = encoded.ids[: encoded.prompt_length]
    chosen, wrong_one = _trusted_completion(encoded), _trusted_completion(rejected)
    return PreferenceExample.pair(encoded.window.qid, state, chosen, wrong_one, encoded.window)


def _trusted_completion(encoded: EncodedWindow) -> Ids:
    """The completion, up to the last supervised choice where there are further ones."""
    whole = encoded.supervised == len(encoded.choices)
    end = len(encoded.ids) if whole else encoded.choices[encoded.supervised - 1].end
    return encoded.ids[encoded.prompt_length : end]


def ndcg_lost(gains: Sequence[float], place: int, other: int) -> float:
    """How much nDCG an order loses by the exchange of two of its places (1-based), as LambdaRank has it; 0 or more.

    Args:
        gains: what the order's passages are worth.
    """
    ideal = sum(gain / log2(1 + rank) for rank, gain in enumerate(sorted(gains, reverse=True), start=1))
    lost = (gains[place - 1] - gains[other - 1]) * (1 / log2(1 + place) - 1 / log2(1 + other))
    return max(0.0, lost / ideal) if ideal > 0 else 0.0


def picked(pick: Pick, scores: Sequence[Sequence[float]]) -> list[tuple[int, ...]]:
    """Which of the rejected completions the reference picks for each preference: one (0-based) or none.

    Args:
        scores: for each preference, the reference's log-probabilities of the chosen and of each rejected identifier.
    """
    found: list[tuple[int, ...]] = []
    for chosen, *rejected in scores:
        best = max(range(len(rejected)), key=rejected.__getitem__)
        found.append((best,) if pick == "hardest" or rejected[best] > chosen else ())
    return found
