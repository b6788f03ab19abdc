"""Forced-text decoding: of a chain, only the choices are the model's.

What stands between two choices follows from those made so far. So a window's prompt is read once, and then, choice by
choice, all the text up to the next one in one forward; what a model has read stays in a cache. Identifiers of several
tokens cost no further forward: the beginnings that some of those left share are read as branches of the same row. Where
the scores of one choice make the next ones all but certain, the text after these is read at once (a draft, as in
speculative decoding, Leviathan et al. 2023); what the model then says decides, and drafts that it does not confirm are
forgotten. The result is what greedy generation gives where every token but those of a well-formed answer is forbidden.
"""

from collections.abc import Sequence
from math import exp, isfinite

from lit_rerank.cache import Cache
from lit_rerank.chat import Ids
from lit_rerank.decoder import Decoded, Decoder, Prompt
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.options import Options, logsumexp
from lit_rerank.packing import Packer
from lit_rerank.scoring import token_logits

DRAFTED = 4  # most choices that are drafted at a time
LIKELY = 0.6  # drafts pay above this probability of being confirmed: a forward less, or their text read in vain


class Stepwise(Decoder):
    """Chains and direct answers, as the encoder's format has it; after the choices that matter the rest stands by the
    scores of the last one."""

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        states = [_State(prompt, self.encoder) for prompt in prompts]
        while going_on := [state for state in states if not state.complete]:
            for state, asked, answers in self._read(going_on):
                state.choose(asked, answers)
        return [state.decoded() for state in states]

    def _read(self, states: "Sequence[_State]") -> "list[tuple[_State, list[Options], list[float]]]":
        """Ask the model for its next choices in each of the windows."""
        packer = Packer()
        asked = [state.ask(packer) for state in states]
        answers = token_logits(self.model, packer.pack(self.model.device)).tolist()
        if not all(map(isfinite, answers)):
            raise UserError(
                "the model's logits are not finite: its weights are broken, or its numbers exceed the dtype's range; "
                "try bfloat16 or float32"
            )
        return [(state, own, answers) for state, own in zip(states, asked, strict=True)]


class First(Stepwise):
    """By the scores of the first choice alone, as FIRST does (Reddy et al. 2024)."""

    def choices(self, n: int, wanted: int) -> int:
        return 1

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        states = [_State(prompt, self.encoder) for prompt in prompts]
        return [state.by_scores(asked[0].logps(answers)) for state, asked, answers in self._read(states)]


class _State:
    """A window on the way to its permutation.

    Attributes:
        left: the identifiers not chosen yet, and their log-probabilities at the last choice.
    """

    def __init__(self, prompt: Prompt, encoder: WindowEncoder) -> None:
        self._prompt, self._encoder = prompt, encoder
        self.left = dict.fromkeys(range(1, prompt.n + 1), 0.0)
        self._chosen: dict[int, float] = {}
        self._drafted: list[int] = []
        self._texts = [self._text(())]  # what is read next: up to the next choice, and up to those after drafted ones
        identifiers = [encoder.identifier_ids(i) for i in self.left]
        beginnings = {ids[:depth] for ids in identifiers for depth in range(1, len(ids))}
        capacity = len(prompt.ids) + encoder.completion_length(prompt.n, prompt.choices)
        self._cache = Cache(capacity + len(beginnings) * (DRAFTED + 1))

    @property
    def complete(self) -> bool:
        return len(self.left) == 1 or len(self._chosen) == self._prompt.choices

    def ask(self, packer: Packer) -> list[Options]:
        """Add to the questions what decides the next choice and, after each draft, the one that then comes."""
        trunk = packer.trunk(self._texts[-1], self._cache)
        return [
            Options.ask(packer, trunk, len(text), [self._encoder.identifier_ids(i) for i in self._left_after(count)])
            for count, text in enumerate(self._texts)
        ]

    def choose(self, asked: Sequence[Options], answers: Sequence[float]) -> None:
        """Make the choices that the answers decide: one, and another for each draft that they confirm."""
        texts, drafted = self._texts, self._drafted
        for count, (text, options) in enumerate(zip(texts, asked, strict=True)):
            self._cache.length = len(text)
            self.left = dict(zip(self.left, options.logps(answers), strict=True))
            tokens = options.options[options.greedy(answers)]
            identifier = next(i for i in self.left if self._encoder.identifier_ids(i) == tokens)
            self._chosen[identifier] = self.left.pop(identifier)
            if self.complete or drafted[count : count + 1] != [identifier]:
                break
        if not self.complete:
            self._go_on(text + tokens)

    def _go_on(self, known: Ids) -> None:
        """Prepare what is read next."""
        text, self._drafted = self._text(()), list[int]()
        if text[: len(known)] != known:
            raise UserError(
                f"{type(self._encoder.chat.tokenizer).__name__} writes an answer's beginning differently when it goes "
                f"on after [{[*self._chosen][-1]}]: this tokenizer cannot be used"
            )
        self._texts = [text]
        for identifier in self._likely():
            text = self._text((*self._drafted, identifier))
            known = self._texts[-1] + self._encoder.identifier_ids(identifier)
            if text[: len(known)] != known:
                break
            self._texts.append(text)
            self._drafted.append(identifier)

    def _likely(self) -> list[int]:
        """The next choices as the last one's scores have them, as far as all of them together are likely."""
        order, likely = sorted(self.left, key=self.left.__getitem__, reverse=True), 1.0
        # After them there must be something to choose, and reason to.
        most = min(DRAFTED, len(order) - 2, self._prompt.choices - len(self._chosen) - 1)
        for count in range(max(most, 0)):
            rest = [self.left[i] for i in order[count:]]
            likely *= exp(rest[0] - logsumexp(rest))
            if likely < LIKELY:
                return order[:count]
        return order[: max(most, 0)]

    def _left_after(self, count: int) -> list[int]:
        """The identifiers left when so many drafted ones are chosen."""
        return [i for i in self.left if i not in self._drafted[:count]]

    def _text(self, drafted: Sequence[int]) -> Ids:
        return self._prompt.ids + self._encoder.before_choice((*self._chosen, *drafted), self._prompt.n)

    def decoded(self) -> Decoded:
        """The choices, and after them what is left, by its scores."""
        if len(self.left) == 1:
            self.left = dict.fromkeys(self.left, 0.0)
        order = self._chosen | dict(sorted(self.left.items(), key=lambda item: -item[1]))
        written = (*self._chosen, *self.left) if len(self.left) == 1 else tuple(self._chosen)
        return Decoded(tuple(order), tuple(order.values()), self._encoder.format.render(written).text)

    def by_scores(self, scores: Sequence[float]) -> Decoded:
        """All by their scores; equals in the order of the window."""
        order = dict(sorted(zip(self.left, scores, strict=True), key=lambda item: -item[1]))
        return Decoded(tuple(order), tuple(order.values()))
