"""The one thing that training asks of a model: log-probabilities of tokens after contexts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rerank.encoding import Ids


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


def token_logps(model: torch.nn.Module, rows: Rows) -> Tensor:
    """Log-probabilities, in nats and float32, of all the tokens asked for: (questions,)."""
    positions, column = rows.position.unique(return_inverse=True)
    logits = model(input_ids=rows.ids, logits_to_keep=positions, use_cache=False).logits
    places, place = (rows.row * len(positions) + column).unique(return_inverse=True)
    logits = logits.flatten(0, 1)[places].float()
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
