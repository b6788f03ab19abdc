"""A share of general conversations among an epoch's windows."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from data_modules.sources.messages import MessagesSource
from lit_rerank.errors import UserError
from lit_rerank.replay import ConversationEncoder, EncodedConversation

if TYPE_CHECKING:
    import datasets


class Examples(Protocol):
    """Examples by (epoch, index)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...


class WithReplay(Dataset[Any]):
    """An epoch's windows and, behind them, conversations; the sampler mixes the two.

    Each conversation comes once before any comes again, in an order that depends on the seed alone: which one stands
    at (epoch, index) needs no state.

    Args:
        share: of all examples, above 0 and below 1, are conversations (at least one is).
    """

    def __init__(self, windows: Examples, conversations: Sequence[Any], share: float, seed: int) -> None:
        self.windows, self.conversations = windows, conversations
        self.replayed = max(1, round(len(windows) * share / (1 - share)))
        self.order = list(range(len(conversations)))
        random.Random(f"{seed}/replay").shuffle(self.order)

    def __len__(self) -> int:
        return len(self.windows) + self.replayed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if index < len(self.windows):
            return self.windows[key]
        drawn = epoch * self.replayed + index - len(self.windows)
        row = self.conversations[self.order[drawn % len(self.order)]]
        return EncodedConversation(tuple(row["ids"]), tuple((start, end) for start, end in row["turns"]), row["cut"])


def load_conversations(source: MessagesSource, encoder: ConversationEncoder) -> "datasets.Dataset":
    """A source's conversations as a table of token ids; what was left out or cut is reported.

    Raises:
        UserError: for a broken one, unless the source skips them, or where none is left.
    """
    import datasets

    rows, broken, too_long = [], [], 0
    for number, conversation in enumerate(source, start=1):
        try:
            encoded = encoder.encode(conversation.messages)
        except UserError as error:
            message = f"{source.path}: conversation {number}: {error}"
            if source.on_error == "raise":
                raise UserError(message) from None
            broken.append(message)
            continue
        if encoded is None:
            too_long += 1
        else:
            rows.append(asdict(encoded))
    if skipped := source.skipped + broken:
        rank_zero_info(f"replay: {len(skipped)} conversations skipped, the first: {skipped[0]}")
    if not rows:
        raise UserError(
            f"data.init_args.replay: {source.path} holds no conversation that fits into {encoder.max_length} tokens"
        )
    cut = sum(row["cut"] for row in rows)
    rank_zero_info(
        f"replay: {len(rows)} conversations, of which {cut} were cut at the end of a turn; {too_long} more were left "
        f"out (there is room for {encoder.max_length} tokens)"
    )
    return datasets.Dataset.from_list(rows)
