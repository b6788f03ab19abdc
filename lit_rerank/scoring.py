"""What is asked of a model: how likely tokens are after contexts. Training and decoding ask in one forward each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from lit_rerank.backbone import is_compiled
from lit_rerank.errors import UserError
from lit_rerank.packing import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


COMPILED_LENGTH = 256


@dataclass(frozen=True)
class Answers:
    """What a model says to the questions of a row.

    Attributes:
        logits: (places, vocabulary) where something is asked.
        place: (questions,) the row of `logits` that answers each.
        token: (questions,) what each asks for.
    """

    logits: Tensor
    place: Tensor
    token: Tensor

    @property
    def logps(self) -> Tensor:
        """Log-probabilities of the tokens asked for, in nats: (questions,)."""
        return logps_of(self.logits, self.place, self.token)

    def logits_of(self, questions: slice) -> Tensor:
        """Logits of every token where some of the questions ask: (those, vocabulary)."""
        return self.logits[self.place[questions]]


def ask(model: "PreTrainedModel", packed: Packed) -> Answers:
    """One forward, in float32 (float64 of such a model) from the logits on.

    Raises:
        UserError: if the model's attention cannot be told who sees whom.
    """
    length = compiled_length(len(packed)) if is_compiled(model) else len(packed)
    return Answers(*place_logits(model, packed, length), packed.token)


def token_logps(model: "PreTrainedModel", packed: Packed) -> Tensor:
    """The `logps` of all that is asked: (questions,)."""
    return ask(model, packed).logps


def compiled_length(tokens: int) -> int:
    """How long the row is that compiled layers read for so many tokens: one of few lengths, each compiled once.

    The next multiple of 256, or of an eighth of the last power of two where that is more: 16 lengths up to 4,096
    tokens, and eight more each time they double.
    """
    step = max(COMPILED_LENGTH, (1 << tokens.bit_length()) // 16)
    return -(-tokens // step) * step


def logps_of(logits: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """Log-probabilities of tokens (questions,), each by the row of logits (places, vocabulary) that `place` names."""
    return logits[place, token] - logits.logsumexp(-1)[place]


def token_logits(model: "PreTrainedModel", packed: Packed) -> Tensor:
    """As `token_logps`, but for what all tokens of one place have in common: enough to choose among them.

    Of the model's head, only the columns of these tokens are computed.
    """
    tokens, column = packed.token.unique(return_inverse=True)
    with _head_columns(model, tokens) as narrowed:
        logits, place = place_logits(model, packed)
    return logits[place, column if narrowed else packed.token]


def place_logits(model: "PreTrainedModel", packed: Packed, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits where something is asked, (places, vocabulary), at least float32, and each question's row: (questions,).

    One forward over the packed row. Logits are the memory of training: the model's head sees only the places that are
    asked about.

    Args:
        length: to how many tokens the row that is read is padded; by default it is not.
    """
    check_packable(model)
    padding = (0, (length or len(packed)) - len(packed))
    places, place = packed.place.unique(return_inverse=True)
    with head_input(model, lambda hidden: hidden[:, places]):
        logits = model(
            input_ids=pad(packed.ids, padding)[None],
            position_ids=pad(packed.layout.positions, padding)[None],
            attention_mask=packed.ids.new_ones(1, 1, 1, 1),  # of this shape, it is nobody else's business
            layout=packed.layout,
            use_cache=False,
        ).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), place


def check_packable(model: "PreTrainedModel") -> None:
    """Refuse a model that cannot read packed rows.

    Raises:
        UserError: if it is such a one.
    """
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    other_layers = layers - {"full_attention", "sliding_attention"}
    if model.config._attn_implementation != "packed" or model._is_stateful or other_layers:
        raise UserError(
            f"{type(model).__name__} cannot read packed rows: they need Transformers' sdpa attention in all layers. It "
            "cannot be trained here; it can rerank with decode generate"
        )


@contextmanager
def head_input(model: "PreTrainedModel", kept: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model's head sees only what `kept` keeps of the hidden states (rows, tokens, size)."""

    def keep(head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = inputs
        return (kept(hidden), *others)

    head: Any = model.get_output_embeddings()
    with head.register_forward_pre_hook(keep):
        yield


@contextmanager
def _head_columns(model: "PreTrainedModel", tokens: Tensor) -> Iterator[bool]:
    """Inside, the model's head computes these tokens' logits only; False where it is no plain matrix, and does not."""
    head: Any = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear
    if not plain:
        yield False
        return
    weight, bias = head.weight[tokens], None if head.bias is None else head.bias[tokens]
    ordinary = vars(head).get("forward")  # by default it is the class's
    head.forward = lambda hidden: linear(hidden, weight, bias)
    try:
        yield True
    finally:
        del head.forward
        if ordinary is not None:
            head.forward = ordinary
