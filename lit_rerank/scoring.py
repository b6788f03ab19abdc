"""The one thing that training asks of a model: log-probabilities of tokens after contexts."""

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rerank.backbone import is_adapted, is_compiled
from lit_rerank.chat import Ids

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


COMPILED_LENGTH = 64  # compiled layers meet rows of multiples of so many tokens only


@dataclass(frozen=True)
class Rows:
    """Sequences to read, and what to look up in what the model says.

    Attributes:
        ids: (rows, longest) token ids, padded on the right (nothing that matters attends to padding).
        row, position, token: (questions,) each asks for log p(token | ids[row, :position + 1]).
        trunk: so many tokens begin all rows, before the first place that is asked about.
        tokens: how many of `ids` are not padding.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
    trunk: int
    tokens: int


class RowsBuilder:
    """Collects questions "log p(token | context)?" and lays their contexts out as rows."""

    def __init__(self) -> None:
        self._sequences: list[Ids] = []
        self._questions: list[tuple[int, int, int]] = []

    def sequence(self, ids: Ids) -> int:
        """Announce a sequence; returns its number."""
        self._sequences.append(ids)
        return len(self._sequences) - 1

    def ask(self, sequence: int, length: int, token: int) -> int:
        """Ask for log p(token | the first `length` tokens of the sequence); returns the index of the answer."""
        self._questions.append((sequence, length - 1, token))
        return len(self._questions) - 1

    def rows(self, device: torch.device | str = "cpu") -> Rows:
        """All that was asked; a sequence that is the beginning of another one shares its row."""
        row_of, rows = _share_prefixes(self._sequences)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, sequence in zip(ids, rows, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        sequence_number, position, token = torch.tensor(self._questions, device=device).unbind(-1)
        return Rows(
            ids=ids.to(device),
            row=torch.tensor(row_of, device=device)[sequence_number],
            position=position,
            token=token,
            trunk=min(_common_beginning(rows), int(position.min())),
            tokens=sum(map(len, rows)),
        )


def token_logps(model: "PreTrainedModel", rows: Rows) -> Tensor:
    """Log-probabilities, in nats and float32, of all the tokens asked for: (questions,).

    What begins all rows is read once, where that pays; compiled layers get whole rows, padded to few lengths. Logits
    are the memory of training: the model's head sees only the places that are asked about, whereas `logits_to_keep`
    would give it each of their positions in every row.
    """
    trunk = rows.trunk if _pays(model, rows) else 0
    ids = _lengthened(rows.ids, COMPILED_LENGTH) if is_compiled(model) else rows.ids[:, trunk:]
    places, place = (rows.row * ids.shape[1] + rows.position - trunk).unique(return_inverse=True)

    def keep_places(head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = inputs
        return (hidden.flatten(0, 1)[None, places], *others)

    memory = _read(model, rows.ids[:1, :trunk], len(ids)) if trunk else None
    head: Any = model.get_output_embeddings()
    with head.register_forward_pre_hook(keep_places):
        logits = model(input_ids=ids, past_key_values=memory, use_cache=trunk > 0).logits[0].float()
    return logits[place, rows.token] - logits.logsumexp(-1)[place]


def _pays(model: "PreTrainedModel", rows: Rows) -> bool:
    """Whether reading the trunk once saves an eighth of the tokens or more, and the model can do so.

    Checkpointed layers keep no keys, recurrent ones have none, and compiled ones would be compiled for every cache.
    """
    saved = rows.trunk * (len(rows.ids) - 1)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    whole = checkpointed or model._is_stateful or is_compiled(model)
    return 8 * saved >= rows.ids.numel() and not whole


def _lengthened(ids: Tensor, multiple: int) -> Tensor:
    """Rows padded on the right to the next multiple of a length."""
    return torch.nn.functional.pad(ids, (0, -ids.shape[1] % multiple))


def _read(model: "PreTrainedModel", ids: Tensor, copies: int) -> "DynamicCache":
    """Keys and values of one sequence, for so many rows that go on from it; gradients flow back through them."""
    from transformers import DynamicCache

    memory = DynamicCache()
    body: Any = model.base_model.model if is_adapted(model) else model
    body.base_model(input_ids=ids, past_key_values=memory, use_cache=True)
    memory.batch_repeat_interleave(copies)
    return memory


def _common_beginning(rows: list[Ids]) -> int:
    """How many tokens all rows begin with."""
    together = zip(*rows, strict=False)
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))


def _share_prefixes(sequences: list[Ids]) -> tuple[list[int], list[Ids]]:
    """The sequences that are not the beginning of another one, and for every sequence which of them holds it."""
    row_of = [0] * len(sequences)
    rows: list[Ids] = []
    # Sorted, whatever begins with a sequence follows it at once; from the end, the longest comes first.
    for number in sorted(range(len(sequences)), key=sequences.__getitem__, reverse=True):
        sequence = sequences[number]
        if not rows or rows[-1][: len(sequence)] != sequence:
            rows.append(sequence)
        row_of[number] = len(rows) - 1
    return row_of, rows
