"""Step preferences: at each step of a chain, the teacher's identifier against wrong ones that remain."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lit_rerank.chat import Ids
from lit_rerank.encoding import EncodedWindow, WindowEncoder
from lit_rerank.errors import UserError

Pick = Literal["hardest", "on_policy"]


@dataclass(frozen=True)
class Preference:
    """After `state`, the tokens `chosen` are preferred to each of `rejected`.

    Attributes:
        step: which choice of the window this is (1-based); 1 for whole completions.
    """

    state: Ids
    chosen: Ids
    rejected: tuple[Ids, ...]
    step: int = 1


@dataclass(frozen=True)
class PreferenceExample:
    """The preferences of one window (or of one ready-made pair).

    Attributes:
        pick: None to use every rejected completion; otherwise the reference model picks among them:
            `hardest` the one it likes most; `on_policy` its own choice, and no preference where that is the teacher's.
    """

    qid: str
    preferences: tuple[Preference, ...]
    pick: Pick | None = None


@dataclass(frozen=True)
class Negatives:
    """Which wrong completions stand against the teacher's: `on_policy | hardest | sampled:m | all | sequence`."""

    mode: str
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Negatives":
        """Read the setting.

        Raises:
            UserError: for anything else.
        """
        mode, _, count = text.partition(":")
        if mode == "sampled" and count.isdecimal() and int(count) > 0:
            return cls(mode, int(count))
        if mode in ("on_policy", "hardest", "all", "sequence") and not count:
            return cls(mode)
        raise UserError(f"negatives {text!r}: choose on_policy, hardest, sampled:m (as in sampled:2), all or sequence")

    def example(self, encoded: EncodedWindow, encoder: WindowEncoder, draw: random.Random) -> PreferenceExample:
        """The preferences of a window; `draw` decides what is sampled."""
        qid = encoded.window.qid
        if self.mode == "sequence":
            alternatives = len(encoded.choices) > 1
            return PreferenceExample(qid, (sequence_preference(encoded, encoder, draw),) if alternatives else ())
        preferences = step_preferences(encoded, encoder)
        if self.mode == "sampled":
            preferences = tuple(
                replace(p, rejected=tuple(draw.sample(p.rejected, min(self.count or 1, len(p.rejected)))))
                for p in preferences
            )
        pick: Pick | None = self.mode if self.mode in ("hardest", "on_policy") else None  # type: ignore[assignment]
        return PreferenceExample(qid, preferences, pick)


def step_preferences(encoded: EncodedWindow, encoder: WindowEncoder) -> tuple[Preference, ...]:
    """One preference for each supervised step but the window's last, against every wrong identifier that remains."""
    choices = encoded.choices
    return tuple(
        Preference(
            state=encoded.ids[: choice.start],
            chosen=encoded.ids[choice.start : choice.end],
            rejected=tuple(encoder.identifier_ids(later.identifier) for later in choices[step:]),
            step=step,
        )
        for step, choice in enumerate(choices[:-1][: encoded.supervised], start=1)
    )


def sequence_preference(encoded: EncodedWindow, encoder: WindowEncoder, draw: random.Random) -> Preference:
    """The teacher's completion against that of a random other order, both as far as the teacher is trusted."""
    permutation, trusted = tuple(choice.identifier for choice in encoded.choices), encoded.supervised
    wrong = permutation
    while wrong[:trusted] == permutation[:trusted]:
        wrong = tuple(draw.sample(permutation, len(permutation)))
    rejected = encoder.encode(replace(encoded.window, permutation=wrong), trusted)
    return Preference(
        state=encoded.ids[: encoded.prompt_length],
        chosen=_trusted_completion(encoded),
        rejected=(_trusted_completion(rejected),),
    )


def _trusted_completion(encoded: EncodedWindow) -> Ids:
    """The completion, up to the last supervised choice where there are further ones."""
    whole = encoded.supervised == len(encoded.choices)
    end = len(encoded.ids) if whole else encoded.choices[encoded.supervised - 1].end
    return encoded.ids[encoded.prompt_length : end]


def pick_rejected(example: PreferenceExample, scores: Sequence[Sequence[float]]) -> PreferenceExample:
    """Keep of each preference the rejected completion that the reference picks.

    Args:
        scores: for each preference, the reference's log-probabilities of the chosen and of each rejected identifier.
    """
    picked = []
    for preference, (chosen, *rejected) in zip(example.preferences, scores, strict=True):
        best = max(range(len(rejected)), key=rejected.__getitem__)
        if example.pick == "hardest" or rejected[best] > chosen:
            picked.append(replace(preference, rejected=(preference.rejected[best],)))
    return PreferenceExample(example.qid, tuple(picked))
