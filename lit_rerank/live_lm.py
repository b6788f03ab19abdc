"""lm-eval on a model that is in use: no second copy, adapters as they are, nothing changed afterwards."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from lm_eval.api import task as lm_eval_task
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lit_rerank.backbone import is_compiled
from lit_rerank.errors import UserError
from lit_rerank.frozen import modes_kept
from lit_rerank.packing import Packer
from lit_rerank.rng import rng_state, set_rng_state
from lit_rerank.scoring import logps_of, place_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], object]
Tokens = tuple[int, ...]
Group = tuple[Tokens, Tokens]
Piece = tuple[Group, Tokens]
Request = tuple[Any, list[int], list[int]]

MAX_ASKED = 1024  # tokens asked for in one forward: the vocabulary's logits of each are kept
MAX_BRANCH = 128  # tokens of a continuation that shares its context with others


class LiveLM(HFLM):
    """lm-eval's way to a Hugging Face model, which here reads each context once, with all its continuations.

    Args:
        model: loaded, where it shall compute.
        tokenizer: the model's.
        batch_size: contexts read at a time; those that begin alike share the beginning.
        progress: told how many documents of tasks are done since the last time, whatever has been asked of each.

    Attributes:
        truncated: how many contexts lost their beginning, for with it they exceed the model's context.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int = 4,
        progress: Progress = lambda count: None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        # HFLM may not touch the model and the tokenizer: it would tie the weights of an adapted head to the
        # embeddings again, which fails, and give the tokenizer a token for padding.
        seen: Any = SimpleNamespace(config=model.config, device=model.device)
        super().__init__(pretrained=seen, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self._model = model  # for tasks that generate
        self._progress = progress
        self._documents: list[Hashable] = []  # of what is asked next, each request's
        self.truncated = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in HFLM, without its progress bars."""
        self._documents = [(request.task_name, request.doc_id) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each text, in nats, after one token that begins a text.

        In HFLM there are two where the tokenizer, too, begins texts with one.
        """
        windows = [(number, own) for number, request in enumerate(requests) for own in self._windows(*request.args)]
        self._documents = [number for number, _ in windows]
        totals = [0.0] * len(requests)
        answers = self._loglikelihood_tokens([window for _, window in windows])
        for (number, _), (logp, _) in zip(windows, answers, strict=True):
            totals[number] += logp
        return totals

    def _windows(self, text: str) -> list[Request]:
        """A text in as few parts as the model's context allows."""
        ids = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
        return [(None, *make_disjoint_window(window)) for window in windows]

    def uniform(self, text: str) -> float:
        """What a text would cost if all tokens were equally likely, in nats."""
        tokens = len(self.tok_encode(text, add_special_tokens=False))
        return tokens * math.log(self._model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Of each continuation: log-probability in nats, and whether each of its tokens is the likeliest."""
        self.truncated += len({tuple(c) for _, c, continuation in requests if len(c) > self._room(continuation)})
        asked = [list(self._pieces(context, continuation)) for _, context, continuation in requests]
        batches = list(self._batches(piece for pieces in asked for piece in pieces))
        done = self._done(asked, batches)
        found: dict[Piece, tuple[float, bool]] = {}
        for number, batch in enumerate(batches):
            found.update(self._read(batch))
            self._progress(done[number])
        return [(sum(found[p][0] for p in pieces), all(found[p][1] for p in pieces)) for pieces in asked]

    def _room(self, continuation: Sequence[int]) -> int:
        """How much of a context leaves room for a continuation, whose last token is not read."""
        return max(self.max_length + 1 - len(continuation), 1)

    def _pieces(self, context: Sequence[int], continuation: Sequence[int]) -> Iterator[Piece]:
        """A continuation in pieces of at most MAX_ASKED tokens; a long one shares its context with no other."""
        kept = tuple(context[-self._room(continuation) :])
        for start in range(0, len(continuation), MAX_ASKED):
            ids = tuple(continuation[start : start + MAX_ASKED])
            yield (kept + tuple(continuation[:start]), ids if len(ids) > MAX_BRANCH else ()), ids

    def _batches(self, pieces: Iterable[Piece]) -> Iterator[dict[Group, list[Tokens]]]:
        """What is read in each forward: at most `batch_size` contexts, and MAX_ASKED tokens after them."""
        groups: dict[Group, dict[Tokens, None]] = {}
        for group, ids in pieces:
            groups.setdefault(group, {})[ids] = None
        batch: dict[Group, list[Tokens]] = {}
        asked = 0
        for group in sorted(groups):  # neighbours begin alike
            for part in _parts(groups[group]):
                own = sum(map(len, part))
                if batch and (len(batch) == self.batch_size or asked + own > MAX_ASKED):
                    yield batch
                    batch, asked = {}, 0
                batch[group] = part
                asked += own
        if batch:
            yield batch

    def _done(self, asked: Sequence[Sequence[Piece]], batches: Sequence[dict[Group, list[Tokens]]]) -> Counter[int]:
        """How many documents are done with each batch."""
        read_in = {(group, ids): n for n, batch in enumerate(batches) for group in batch for ids in batch[group]}
        last: dict[Hashable, int] = {}
        for document, pieces in zip(self._documents, asked, strict=True):
            last[document] = max([last.get(document, 0), *(read_in[piece] for piece in pieces)])
        return Counter(last.values())

    def _read(self, groups: dict[Group, list[Tokens]]) -> dict[Piece, tuple[float, bool]]:
        packer = Packer()
        asked = {
            (group, continuation): answers
            for group, continuations in groups.items()
            for continuation, answers in _ask(packer, group[0], continuations)
        }
        packed = packer.pack(self.device)
        logits, place = place_logits(self._model, packed)
        logps = logps_of(logits, place, packed.token).tolist()
        likeliest = (logits.argmax(-1)[place] == packed.token).tolist()
        return {
            key: (sum(logps[i] for i in answers), all(likeliest[i] for i in answers)) for key, answers in asked.items()
        }


def _parts(continuations: Iterable[Tokens]) -> Iterator[list[Tokens]]:
    """One context's continuations, MAX_ASKED tokens of them at a time."""
    part: list[Tokens] = []
    for ids in continuations:
        if part and sum(map(len, part)) + len(ids) > MAX_ASKED:
            yield part
            part = []
        part.append(ids)
    yield part


def _ask(packer: Packer, context: Tokens, continuations: Sequence[Tokens]) -> Iterator[tuple[Tokens, list[int]]]:
    """Ask for continuations of a context; which answers tell about each. The longest is read as the context is."""
    longest = max(continuations, key=len)
    trunk = packer.trunk(context + longest[:-1])
    for continuation in continuations:
        yield continuation, packer.ask_each(trunk, len(context), continuation)


@contextmanager
def undisturbed(model: "PreTrainedModel") -> Iterator[None]:
    """The model in eval mode, uncompiled (each row has a length of its own), and lm-eval without its advice to
    developers; afterwards each layer's mode and all random generators are as before."""
    state, logger = rng_state(), logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            modes_kept(model),
            patch.object(lm_eval_task, "tqdm", lambda documents, **_: documents),
            torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext(),
        ):
            model.eval()
            yield
    finally:
        logger.setLevel(level)
        set_rng_state(state)
