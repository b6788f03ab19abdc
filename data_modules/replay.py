"""A share of general conversations among an epoch's windows."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from data_modules.windows import CHARACTERS_PER_TOKEN, Examples
from lit_rerank.errors import UserError
from lit_rerank.replay import ConversationEncoder, EncodedConversation


class Conversations:
    """Conversations without end, numbered as they are drawn.

    They come in an order that depends on the seed alone, again and again: which one has a number needs no state. Where
    one is too long, the next in that order stands in, and comes again as itself.

    Args:
        rows: conversations, {"messages": [{"role", "content"}]}.
        skip: whether the next stands in, too, where the chat template refuses one; otherwise that is an error.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], encoder: ConversationEncoder, skip: bool, seed: int) -> None:
        self.rows, self.encoder, self.skip = rows, encoder, skip
        self.order = list(range(len(rows)))
        random.Random(f"{seed}/replay").shuffle(self.order)

    def quota(self, windows: int, share: float) -> int:
        """How many make up a share (above 0 and below 1; at least one does) of all examples, beside so many windows."""
        return max(1, round(windows * share / (1 - share)))

    def take(self, numbers: range) -> Callable[[int], EncodedConversation]:
        """Those with these numbers, encoded when called."""
        return lambda i: self.conversation(numbers[i])

    def length(self, number: int) -> int:
        """Roughly how many tokens one takes."""
        messages = self.rows[self.order[number % len(self.order)]]["messages"]
        characters = sum(len(message["content"]) for message in messages)
        return min(characters // CHARACTERS_PER_TOKEN, self.encoder.max_length)

    def conversation(self, number: int) -> EncodedConversation:
        """One, or the next that can be had."""
        for left_out in range(len(self.order)):
            encoded = self._encode(self.order[(number + left_out) % len(self.order)])
            if encoded is not None:
                return replace(encoded, left_out=left_out)
        raise UserError(
            f"data.init_args.replay: no conversation fits into {self.encoder.max_length} tokens"
            + (", or the chat template refuses them" if self.skip else "")
        )

    def _encode(self, row: int) -> EncodedConversation | None:
        try:
            return self.encoder.encode(self.rows[row]["messages"])
        except UserError as error:
            if self.skip:
                return None
            raise UserError(f"data.init_args.replay, conversation {row + 1}: {error}") from None


class WithReplay(Dataset[Any]):
    """An epoch's windows and, behind them, a share of conversations; the sampler mixes the two."""

    def __init__(self, windows: Examples, conversations: Conversations, share: float) -> None:
        self.windows, self.conversations = windows, conversations
        self.replayed = conversations.quota(len(windows), share)

    def __len__(self) -> int:
        return len(self.windows) + self.replayed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        if key[1] < len(self.windows):
            return self.windows[key]
        return self.conversations.conversation(self._drawn(*key))

    def length(self, key: tuple[int, int]) -> int:
        if key[1] < len(self.windows):
            return self.windows.length(key)
        return self.conversations.length(self._drawn(*key))

    def _drawn(self, epoch: int, index: int) -> int:
        """How many conversations were drawn before the one at (epoch, index)."""
        return epoch * self.replayed + index - len(self.windows)
