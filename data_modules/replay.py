"""A share of general conversations among an epoch's windows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from data_modules.windows import CHARACTERS_PER_TOKEN, Examples
from lit_rerank.errors import UserError
from lit_rerank.replay import ConversationEncoder, EncodedConversation


class WithReplay(Dataset[Any]):
    """An epoch's windows and, behind them, conversations; the sampler mixes the two.

    Each conversation comes once before any comes again, in an order that depends on the seed alone: which one stands
    at (epoch, index) needs no state. Where one is too long, the next in that order stands in.

    Args:
        windows: those of an epoch.
        rows: conversations, {"messages": [{"role", "content"}]}.
        share: of all examples, above 0 and below 1, are conversations (at least one is).
        skip: whether the next stands in, too, where the chat template refuses one; otherwise that is an error.
        seed: of the order.
    """

    def __init__(
        self,
        windows: Examples,
        rows: Sequence[Mapping[str, Any]],
        encoder: ConversationEncoder,
        share: float,
        skip: bool,
        seed: int,
    ) -> None:
        self.windows, self.rows, self.encoder, self.skip = windows, rows, encoder, skip
        self.replayed = max(1, round(len(windows) * share / (1 - share)))
        self.order = list(range(len(rows)))
        random.Random(f"{seed}/replay").shuffle(self.order)

    def __len__(self) -> int:
        return len(self.windows) + self.replayed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if index < len(self.windows):
            return self.windows[key]
        return self._conversation(self._drawn(epoch, index))

    def length(self, key: tuple[int, int]) -> int:
        epoch, index = key
        if index < len(self.windows):
            return self.windows.length(key)
        messages = self.rows[self.order[self._drawn(epoch, index) % len(self.order)]]["messages"]
        characters = sum(len(message["content"]) for message in messages)
        return min(characters // CHARACTERS_PER_TOKEN, self.encoder.max_length)

    def _drawn(self, epoch: int, index: int) -> int:
        """How many conversations were drawn before the one at (epoch, index)."""
        return epoch * self.replayed + index - len(self.windows)

    def _conversation(self, drawn: int) -> EncodedConversation:
        for left_out in range(len(self.order)):
            encoded = self._encode(self.order[(drawn + left_out) % len(self.order)])
            if encoded is not None:
                return replace(encoded, left_out=left_out)
        raise UserError(
            f"data.init_args.replay: no conversation fits into {self.encoder.max_length} tokens"
            + (", or the chat template refuses them" if self.skip else "")
        )

    def _encode(self, number: int) -> EncodedConversation | None:
        try:
            return self.encoder.encode(self.rows[number]["messages"])
        except UserError as error:
            if self.skip:
                return None
            raise UserError(f"data.init_args.replay, conversation {number + 1}: {error}") from None
