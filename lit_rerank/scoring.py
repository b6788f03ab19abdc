"""The one thing that training asks of a model: log-probabilities of tokens after contexts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rerank.encoding import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rows:
    """Sequences to read, and what to look up in what the model says.

    Attributes:
        ids: (rows, longest) token ids, padded on the right (nothing that matters attends to padding).
        row, position, token: (questions,) each asks for log p(token | ids[row, :position + 1]).
        tokens: how many of `ids` are not padding.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    token: Tensor
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
            tokens=sum(map(len, rows)),
        )


def token_logps(model: "PreTrainedModel", rows: Rows) -> Tensor:
    """Log-probabilities, in nats and float32, of all the tokens asked for: (questions,).

    Logits are the memory of training. The model's head sees only the places that are asked about, whereas
    `logits_to_keep` would give it each of their positions in every row.
    """
    places, place = (rows.row * rows.ids.shape[1] + rows.position).unique(return_inverse=True)

    def keep_places(head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = inputs
        return (hidden.flatten(0, 1)[None, places], *others)

    head: Any = model.get_output_embeddings()
    with head.register_forward_pre_hook(keep_places):
        logits = model(input_ids=rows.ids, use_cache=False).logits[0].float()
    return logits[place, rows.token] - logits.logsumexp(-1)[place]


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
