"""General conversations among the windows, against forgetting: what is learned of them, and what that asks of a model.

Learning to rank alone drives out what an instruction-tuned model could do before; a share of its former kind of data,
read along, keeps it (experience replay, Rolnick et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rerank.chat import TEXT, Ids, Message
from lit_rerank.encoding import WindowEncoder, token_spans
from lit_rerank.errors import UserError
from lit_rerank.losses import segment_mean
from lit_rerank.packing import Packer

_PROBE = "probe7f3a{}z"


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids, up to the end of its last turn of the assistant; or a text, as far as it fits.

    Attributes:
        turns: of each of the assistant's turns, the tokens `ids[start:end]`: its text and the end of the turn; of a
            text, all but the first.
        cut: whether later turns, or the end of a text, did not fit.
        left_out: how many conversations this one stands in for: too long ones, and such as the template refuses.
        messages: what it was made of.
    """

    ids: Ids
    turns: tuple[tuple[int, int], ...]
    cut: bool = False
    left_out: int = 0
    messages: tuple[Message, ...] = ()


class ConversationEncoder:
    """Turns conversations into token ids, by the chat template and within the limits of windows."""

    def __init__(self, encoder: WindowEncoder) -> None:
        self.chat, self.lead, self.max_length = encoder.chat, encoder.lead, encoder.max_length

    def encode(self, messages: Sequence[Message]) -> EncodedConversation | None:
        """As much of a conversation as fits, cut at the end of a turn; None where not even its first answer does. Of a
        text as many tokens as fit; None where there are not two.

        Raises:
            UserError: if the chat template refuses the messages or leaves any of the assistant's out.
        """
        if messages[0]["role"] == TEXT:
            return self._text(messages[0])
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for last in reversed(answers):
            ids, turns = self._encode(messages[: last + 1])
            if len(ids) <= self.max_length:
                kept = tuple(dict(message) for message in messages[: last + 1])
                return EncodedConversation(ids, turns, cut=last != answers[-1], messages=kept)
        return None

    def _text(self, message: Message) -> EncodedConversation | None:
        ids = self.chat.text(message["content"])
        kept = ids[: self.max_length]
        if len(kept) < 2:
            return None
        return EncodedConversation(kept, ((1, len(kept)),), cut=len(kept) < len(ids), messages=(dict(message),))

    def _encode(self, messages: Sequence[Message]) -> tuple[Ids, tuple[tuple[int, int], ...]]:
        """The ids and the assistant's turns of a conversation that ends with one.

        The last is written as an answer to a prompt is, the others as the template writes earlier ones: it is given
        probes in their place, which tell where these turns are, whatever the template writes around them.
        """
        *before, answer = [{**m, "content": self.chat.disarm(m["content"])} for m in messages]
        said = {i: m["content"].strip() for i, m in enumerate(before) if m["role"] == "assistant"}
        shown = [{**m, "content": _PROBE.format(i)} if i in said else m for i, m in enumerate(before)]
        text, rest, spans = "", self.chat.render(shown), []
        end = self.chat.end_of_turn
        for i, turn in said.items():
            start, probe, rest = rest.partition(_PROBE.format(i))
            if not probe or probe in rest:
                raise UserError(f"the chat template of {self.chat.name!r} drops or repeats the assistant's turns")
            text += start
            spans.append((len(text), len(text) + len(turn) + _ending(rest, end)))
            text += turn
        text += rest + self.lead
        answered = text + answer["content"].strip() + end
        ids, offsets = self.chat.spans(answered)
        return ids, tuple(token_spans(offsets, [*spans, (len(text), len(answered))]))


def _ending(text: str, end_of_turn: str) -> int:
    """How many characters end the turn that stood before a text; none where the template does not mark it."""
    bare = text.lstrip()
    return len(text) - len(bare) + len(end_of_turn) if bare.startswith(end_of_turn) else 0


@dataclass(frozen=True)
class ReplayTargets:
    """The assistant's turns of a batch of conversations, or all of their texts: T tokens.

    Attributes:
        first: the index of the first of their answers; the others follow it.
        conversation: (T,) the conversation of each token; conversations: how many.
    """

    first: int
    conversation: Tensor
    conversations: int

    @classmethod
    def ask(
        cls, packer: Packer, batch: Sequence[EncodedConversation], device: torch.device | str = "cpu"
    ) -> "ReplayTargets":
        """Add to a packer's questions: each conversation is one more trunk of the row."""
        first, conversation = len(packer), []
        for number, encoded in enumerate(batch):
            trunk = packer.trunk(encoded.ids, apart=True)
            for start, end in encoded.turns:
                packer.ask_each(trunk, start, encoded.ids[start:end])
                conversation += [number] * (end - start)
        return cls(first, torch.tensor(conversation, dtype=torch.long, device=device), len(batch))

    @property
    def asked(self) -> slice:
        """Their answers."""
        return slice(self.first, self.first + len(self.conversation))

    def means(self, losses: Tensor) -> Tensor:
        """(conversations,) the mean of the losses (T,) of each one's tokens."""
        return segment_mean(losses, self.conversation, self.conversations)
