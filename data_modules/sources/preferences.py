"""Ready-made preference pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_modules.sources.base import OnError, Row, each, text
from data_modules.sources.dataset import DatasetSource
from data_modules.sources.messages import Message, message
from lit_rerank.errors import UserError


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` is the better.

    Attributes:
        prompt: text, or chat messages `{"role", "content"}`.

    Raises:
        UserError: for an empty prompt, or two answers that are the same.
    """

    prompt: str | list[Message]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError("the prompt is empty")
        if self.chosen == self.rejected:
            raise UserError("chosen and rejected are the same")


class PairsSource(DatasetSource[PreferencePair]):
    """Preference pairs in the layouts that TRL takes, plain or conversational, the prompt explicit or implicit.

        {"prompt": str, "chosen": str, "rejected": str}
        {"prompt": [{"role": str, "content": str}, ...], "chosen": [{"role": "assistant", "content": str}], ...}
        {"chosen": str, "rejected": str}                  the text that both begin with is the prompt
        {"chosen": [messages], "rejected": [messages]}    the messages that both begin with are the prompt

    Whole conversations beside a prompt that is text (as UltraFeedback has them) are read like those without one.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, a JSON array (`.json`, `.json.gz`), a `.parquet` file, a directory of
            dataset files, or a dataset on the Hub, such as `trl-lib/ultrafeedback_binarized`.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(path, on_error, example="trl-lib/ultrafeedback_binarized")

    def _record(self, row: Row) -> PreferencePair:
        return pair(row)


def pair(row: Row) -> PreferencePair:
    """The pair of an object in any of these layouts."""
    if isinstance(row.get("prompt"), list):
        prompt: str | list[Message] = list(each(row, "prompt", message))
    elif _is_conversation(row, "chosen") and _is_conversation(row, "rejected"):
        return _implicit_messages(row)
    elif "prompt" not in row:
        return _implicit_text(text(row, "chosen"), text(row, "rejected"))
    else:
        prompt = text(row, "prompt")
    return PreferencePair(prompt, _answer(row, "chosen"), _answer(row, "rejected"))


def _is_conversation(row: Row, name: str) -> bool:
    """Whether there are messages, and an answer is not all they hold."""
    messages = row.get(name)
    return isinstance(messages, list) and (len(messages) > 1 or (len(messages) == 1 and "prompt" not in row))


def _implicit_messages(row: Row) -> PreferencePair:
    chosen, rejected = each(row, "chosen", message), each(row, "rejected", message)
    shared = _shared(chosen, rejected)
    if chosen[shared:] == rejected[shared:]:
        raise UserError("chosen and rejected are the same")
    if not shared:
        raise UserError('there is no "prompt", and chosen and rejected do not begin with the same messages')
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if [message["role"] for message in messages[shared:]] != ["assistant"]:
            raise UserError(f'"{name}" must hold exactly one message, the assistant\'s, after those that both hold')
    return PreferencePair(list(chosen[:shared]), chosen[shared]["content"], rejected[shared]["content"])


def _implicit_text(chosen: str, rejected: str) -> PreferencePair:
    shared = _shared(chosen, rejected)
    # As in TRL, the space before the first word that differs belongs to the answers.
    shared -= chosen[:shared].endswith(" ")
    if not shared:
        raise UserError('there is no "prompt", and chosen and rejected do not begin with the same text')
    return PreferencePair(chosen[:shared], chosen[shared:], rejected[shared:])


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items two sequences have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))


def _answer(row: Row, name: str) -> str:
    if not isinstance(row.get(name), list):
        return text(row, name)
    messages = each(row, name, message)
    if [message["role"] for message in messages] != ["assistant"]:
        raise UserError(f'"{name}" must hold exactly one message, the assistant\'s')
    return messages[0]["content"]
