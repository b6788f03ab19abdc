"""Forced-text decoding: of a chain, only the choices are the model's.

What stands between two choices follows from those made so far. So a window's prompt is read once, and then, choice by
choice, all the text up to the next one in one forward; what a model has read stays in a cache. Identifiers of several
tokens cost no further forward: the beginnings that some of those left share are read as branches of the same row. The
result is what greedy generation gives where every token but those of a well-formed answer is forbidden.
"""

from collections.abc import Sequence

from lit_rerank.cache import Cache
from lit_rerank.chat import Ids
from lit_rerank.decoder import Decoded, Decoder, Prompt, check_finite
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.options import Options
from lit_rerank.packing import Packer
from lit_rerank.scoring import token_logits


class Stepwise(Decoder):
    """Chains and direct answers, as the encoder's format has it; after the choices that matter the rest stands by the
    scores of the last one."""

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        states = [_State(prompt, self.encoder) for prompt in prompts]
        while going_on := [state for state in states if not state.complete]:
            for state, options, answers in self._read(going_on):
                state.choose(options, answers)
        return [state.decoded() for state in states]

    def _read(self, states: "Sequence[_State]") -> "list[tuple[_State, Options, list[float]]]":
        """Ask the model for its next choice in each of the windows."""
        packer = Packer()
        options = [state.ask(packer) for state in states]
        answers = token_logits(self.model, packer.pack(self.model.device)).tolist()
        check_finite(answers)
        return [(state, own, answers) for state, own in zip(states, options, strict=True)]


class First(Stepwise):
    """By the scores of the first choice alone, as FIRST does (Reddy et al. 2024)."""

    def choices(self, n: int, wanted: int) -> int:
        return 1

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        states = [_State(prompt, self.encoder) for prompt in prompts]
        return [state.by_scores(options.logps(answers)) for state, options, answers in self._read(states)]


class _State:
    """A window on the way to its permutation.

    Attributes:
        ids: the prompt and the answer up to the next choice.
        left: the identifiers not chosen yet, and their log-probabilities at the last choice.
    """

    def __init__(self, prompt: Prompt, encoder: WindowEncoder) -> None:
        self._prompt, self._encoder = prompt, encoder
        self.left = dict.fromkeys(range(1, prompt.n + 1), 0.0)
        self._chosen: dict[int, float] = {}
        identifiers = [encoder.identifier_ids(i) for i in self.left]
        beginnings = {ids[:depth] for ids in identifiers for depth in range(1, len(ids))}
        capacity = len(prompt.ids) + encoder.completion_length(prompt.n, prompt.choices) + len(beginnings)
        self._cache = Cache(capacity)
        self.ids = prompt.ids + encoder.before_choice((), prompt.n)

    @property
    def complete(self) -> bool:
        return len(self.left) == 1 or len(self._chosen) == self._prompt.choices

    def ask(self, packer: Packer) -> Options:
        """Add what decides the next choice to the questions."""
        trunk = packer.trunk(self.ids, self._cache)
        return Options.ask(packer, trunk, len(self.ids), [self._encoder.identifier_ids(i) for i in self.left])

    def choose(self, options: Options, answers: Sequence[float]) -> None:
        """Go on to the choice after the one that the answers decide."""
        self._cache.length = len(self.ids)
        self.left = dict(zip(self.left, options.logps(answers), strict=True))
        tokens = options.options[options.greedy(answers)]
        identifier = next(i for i in self.left if self._encoder.identifier_ids(i) == tokens)
        self._chosen[identifier] = self.left.pop(identifier)
        if not self.complete:
            self.ids = self._going_on(self.ids + tokens)

    def _going_on(self, known: Ids) -> Ids:
        ids = self._prompt.ids + self._encoder.before_choice(tuple(self._chosen), self._prompt.n)
        if ids[: len(known)] != known:
            raise UserError(
                f"{type(self._encoder.chat.tokenizer).__name__} writes an answer's beginning differently when it goes "
                f"on after [{[*self._chosen][-1]}]: this tokenizer cannot be used"
            )
        return ids

    def decoded(self) -> Decoded:
        """The choices, and after them what is left, by its scores."""
        certain = len(self.left) == 1 and len(self._chosen) < self._prompt.choices
        if certain:  # it was to be chosen, too
            self.left = dict.fromkeys(self.left, 0.0)
        order = self._chosen | dict(sorted(self.left.items(), key=lambda item: -item[1]))
        written = (*self._chosen, *self.left) if certain else tuple(self._chosen)
        return Decoded(tuple(order), tuple(order.values()), self._encoder.format.render(written).text)

    def by_scores(self, scores: Sequence[float]) -> Decoded:
        """All by their scores; equals in the order of the window."""
        order = dict(sorted(zip(self.left, scores, strict=True), key=lambda item: -item[1]))
        return Decoded(tuple(order), tuple(order.values()))
