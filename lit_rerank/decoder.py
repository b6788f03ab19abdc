"""From windows to permutations: what every way to decode shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from threading import Lock
from typing import TYPE_CHECKING

import torch

from data_modules.records import Window
from lit_rerank.backbone import is_compiled
from lit_rerank.chat import Ids
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.frozen import modes_kept
from lit_rerank.ways import MAX_BATCH_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoded:
    """The order that a model gives to a window of `n` passages.

    Attributes:
        permutation: identifiers (1-based), best first; always each of 1..n once.
        logps: of each of these, log p when it was chosen, in nats, p over the identifiers that then remained; of those
            that no choice of their own placed, log p at the last choice. None where a generated text was read.
        text: what the model wrote, or would have with these choices; empty where it makes one choice only.
        malformed: whether the text needed repair.
    """

    permutation: tuple[int, ...]
    logps: tuple[float, ...] | None = None
    text: str = ""
    malformed: bool = False


@dataclass(frozen=True)
class Prompt:
    """A window that is to be decoded.

    Attributes:
        ids: the prompt.
        n: passages in it.
        choices: so many are the model's to make, one by one.
    """

    ids: Ids
    n: int
    choices: int


class Decoder(ABC):
    """A way to decode, in batches of windows that make like numbers of choices and are of like length.

    It can be called by several threads; they wait for each other, as the model changes while it is read.

    Args:
        model: a causal LM.
        encoder: makes the prompts.
        max_batch_tokens: a batch's windows, each taken to be as long as the longest with its answer, have at most so
            many tokens; a window that is longer is a batch of its own.
    """

    def __init__(
        self, model: "PreTrainedModel", encoder: WindowEncoder, max_batch_tokens: int = MAX_BATCH_TOKENS
    ) -> None:
        if max_batch_tokens < 1:
            raise UserError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1")
        self.model, self.encoder, self.max_batch_tokens = model, encoder, max_batch_tokens
        self._reading = Lock()

    def __call__(
        self,
        windows: Sequence[Window],
        choices: Sequence[int] | None = None,
        progress: Callable[[int], object] = lambda count: None,
    ) -> list[Decoded]:
        """An order for each window.

        Args:
            choices: how many of each window's choices matter; by default all.
            progress: is told how many more windows are done.

        Raises:
            UserError: if a window exceeds the context or is empty, or the model's answers are no numbers.
        """
        empty = [window.qid for window in windows if not window.passages]
        if empty:
            raise UserError(f"a window of query {empty[0]!r} holds no passage")
        wanted = [len(window) for window in windows] if choices is None else choices
        decoded = {i: Decoded((1,), (0.0,)) for i, window in enumerate(windows) if len(window) == 1}
        progress(len(decoded))
        prompts = {i: self._prompt(window, wanted[i]) for i, window in enumerate(windows) if i not in decoded}
        for batch in self._batches(prompts):
            with self._reading, torch.no_grad(), _evaluating(self.model):
                decoded.update(zip(batch, self.decode([prompts[i] for i in batch]), strict=True))
            progress(len(batch))
        return [decoded[i] for i in range(len(windows))]

    @abstractmethod
    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        """An order for each of a batch's prompts, of two or more passages each."""

    def choices(self, n: int, wanted: int) -> int:
        """How many choices this decoder leaves to the model where so many matter."""
        return min(max(wanted, 1), n)

    def length(self, prompt: Prompt) -> int:
        """Most tokens of a prompt and its answer."""
        return len(prompt.ids) + self.encoder.completion_length(prompt.n, prompt.choices)

    def _prompt(self, window: Window, wanted: int) -> Prompt:
        choices = self.choices(len(window), wanted)
        return Prompt(self.encoder.encode_prompt(window, choices), len(window), choices)

    def _batches(self, prompts: dict[int, Prompt]) -> Iterator[list[int]]:
        batch: list[int] = []
        longest = 0
        for i in sorted(prompts, key=lambda i: (prompts[i].choices, self.length(prompts[i])), reverse=True):
            longest = max(longest, self.length(prompts[i]))
            if batch and longest * (len(batch) + 1) > self.max_batch_tokens:
                yield batch
                batch, longest = [], self.length(prompts[i])
            batch.append(i)
        if batch:
            yield batch


def check_finite(answers: Sequence[float]) -> None:
    """Raise a UserError where what a model has answered are no numbers."""
    if not all(map(isfinite, answers)):
        raise UserError(
            "the model's logits are not finite: its weights are broken, or its numbers exceed the dtype's range; "
            "try bfloat16 or float32"
        )


@contextmanager
def _evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Eval mode; compiled layers run uncompiled, for each row has a length of its own."""
    with modes_kept(model), torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext():
        model.eval()
        yield
