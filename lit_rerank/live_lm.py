"""lm-eval on a model that is in use: no second copy, adapters as they are, nothing changed afterwards."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from lm_eval.api import task as lm_eval_task
from lm_eval.models.huggingface import HFLM

from lit_rerank.backbone import is_compiled
from lit_rerank.errors import UserError
from lit_rerank.packing import Packer
from lit_rerank.rng import rng_state, set_rng_state
from lit_rerank.scoring import logps_of, place_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], object]
Tokens = tuple[int, ...]
Group = tuple[Tokens, Tokens]
Request = tuple[Any, list[int], list[int]]

MAX_ASKED = 1024  # tokens in one forward: the vocabulary's logits of each are kept
MAX_BRANCH = 128  # tokens of a continuation that shares its context with others


class LiveLM(HFLM):
    """lm-eval's way to a Hugging Face model, which here reads each context once, with all its continuations.

    Args:
        model: loaded, where it shall compute.
        tokenizer: the model's.
        batch_size: contexts read at a time; those that begin alike share the beginning.
        progress: told how many contexts have been read since the last time.

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
        self.truncated = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in HFLM, without its progress bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """As in HFLM, without its progress bars."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Of each continuation: log-probability in nats, and whether each of its tokens is the likeliest."""
        groups: dict[Group, dict[Tokens, None]] = {}
        cut = set()
        for _, context, continuation in requests:
            group = self._group(context, continuation)
            groups.setdefault(group, {})[tuple(continuation)] = None
            if len(group[0]) < len(context):
                cut.add(tuple(context))
        self.truncated += len(cut)
        found: dict[tuple[Group, Tokens], tuple[float, bool]] = {}
        for batch in self._batches(groups):
            found.update(self._read({group: list(groups[group]) for group in batch}))
            self._progress(len(batch))
        return [found[self._group(context, ids), tuple(ids)] for _, context, ids in requests]

    def _group(self, context: Sequence[int], continuation: Sequence[int]) -> Group:
        """What is read together: the end of a context that leaves room for the continuation, whose last token is not
        read; a long continuation is read by itself."""
        room = max(self.max_length + 1 - len(continuation), 1)
        return tuple(context[-room:]), tuple(continuation) if len(continuation) > MAX_BRANCH else ()

    def _batches(self, groups: dict[Group, dict[Tokens, None]]) -> Iterator[list[Group]]:
        batch: list[Group] = []
        asked = 0
        for group in sorted(groups):  # neighbours begin alike
            own = sum(map(len, groups[group]))
            if batch and (len(batch) == self.batch_size or asked + own > MAX_ASKED):
                yield batch
                batch, asked = [], 0
            batch.append(group)
            asked += own
        if batch:
            yield batch

    def _read(self, groups: dict[Group, list[Tokens]]) -> dict[tuple[Group, Tokens], tuple[float, bool]]:
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


def _ask(packer: Packer, context: Tokens, continuations: Sequence[Tokens]) -> Iterator[tuple[Tokens, list[int]]]:
    """Ask for continuations of a context; which answers tell about each. The longest is read as the context is."""
    longest = max(continuations, key=len)
    start = len(context)
    trunk = packer.trunk(context + longest[:-1])
    for continuation in continuations:
        if continuation == longest:
            yield continuation, [packer.ask(trunk, start + i, token) for i, token in enumerate(longest)]
        else:
            yield continuation, [packer.ask(trunk, start, t, continuation[:i]) for i, t in enumerate(continuation)]


@contextmanager
def undisturbed(model: "PreTrainedModel") -> Iterator[None]:
    """The model in eval mode, uncompiled (each row has a length of its own), and lm-eval without its advice to
    developers; afterwards each layer's mode and all random generators are as before."""
    training = {layer: layer.training for layer in model.modules()}
    state, logger = rng_state(), logging.getLogger("lm_eval")
    level = logger.level
    model.eval()
    logger.setLevel(logging.ERROR)
    try:
        with (
            patch.object(lm_eval_task, "tqdm", lambda documents, **_: documents),
            torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext(),
        ):
            yield
    finally:
        logger.setLevel(level)
        for layer, mode in training.items():
            layer.training = mode
        set_rng_state(state)
