"""Reranking by query likelihood, passage by passage (UPR, Sachan et al. 2022): what a model knows without being taught.

A passage is as relevant as the query is likely where the model is asked for a question about it. No identifier is to be
told from another, no order to be written; but no passage is compared with another either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_modules.records import Window
from lit_rerank.chat import Ids
from lit_rerank.decoder import Decoded, Decoder, Prompt, check_finite
from lit_rerank.packing import Packer
from lit_rerank.scoring import logps_of, place_logits

_TASK = "Write the question that this passage answers.\n\nPassage: {passage}"


@dataclass(frozen=True)
class _Pointwise(Prompt):
    """A window, of which each passage is read alone.

    Attributes:
        asked: of each passage, what asks for a question about it, and the query in answer.
    """

    asked: tuple[tuple[Ids, Ids], ...]


class QueryLikelihood(Decoder):
    """By log p(query | passage).

    `Decoded.logps` take the passages for equally probable beforehand: of those not placed yet, each is chosen with a
    probability in proportion to p(query | passage).
    """

    def choices(self, n: int, wanted: int) -> int:
        return 1

    def length(self, prompt: Prompt) -> int:
        assert isinstance(prompt, _Pointwise)
        return sum(len(context) + len(query) for context, query in prompt.asked)

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        packer, questions = Packer(), list[list[list[int]]]()
        for prompt in prompts:
            assert isinstance(prompt, _Pointwise)
            questions.append([_ask(packer, *asked) for asked in prompt.asked])
        packed = packer.pack(self.model.device)
        answers = logps_of(*place_logits(self.model, packed), packed.token).double()
        check_finite(answers.tolist())
        return [_by_likelihood(torch.stack([answers[own].sum() for own in window])) for window in questions]

    def _prompt(self, window: Window, wanted: int) -> Prompt:
        query, *passages = self.encoder.texts(window)
        return _Pointwise((), len(window), 1, tuple(self._asked(passage, query) for passage in passages))

    def _asked(self, passage: str, query: str) -> tuple[Ids, Ids]:
        messages = [{"role": "user", "content": _TASK.format(passage=passage)}]
        context, answer, _ = self.encoder.encode_pair(messages, query, query)
        end = len(self.encoder.chat.tokenize(self.encoder.chat.end_of_turn))
        return context, answer[:-end]


def _ask(packer: Packer, context: Ids, query: Ids) -> list[int]:
    return packer.ask_each(packer.trunk(context + query), len(context), query)


def _by_likelihood(scores: torch.Tensor) -> Decoded:
    """All by their scores (passages,) in nats; equals in the order of the window."""
    order = scores.argsort(descending=True, stable=True)
    ranked = scores[order]
    left = ranked.flip(0).logcumsumexp(0).flip(0)  # of each place, what it and those below weigh together
    return Decoded(tuple(int(i) + 1 for i in order), tuple((ranked - left).tolist()))
