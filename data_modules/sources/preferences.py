"""Ready-made preference pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_modules.sources.base import OnError, Row, Source, each, existing_file, text
from lit_rerank.errors import UserError

Message = dict[str, str]


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


class PairsSource(Source[PreferencePair]):
    """Preference pairs in the layouts that TRL takes, plain or conversational, one object a line.

        {"prompt": str, "chosen": str, "rejected": str}
        {"prompt": [{"role": str, "content": str}, ...], "chosen": [{"role": "assistant", "content": str}], ...}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[PreferencePair]:
        return self._jsonl(self.path, _pair)


def _pair(row: Row) -> PreferencePair:
    prompt = list(each(row, "prompt", _message)) if isinstance(row.get("prompt"), list) else text(row, "prompt")
    return PreferencePair(prompt, _answer(row, "chosen"), _answer(row, "rejected"))


def _answer(row: Row, name: str) -> str:
    if not isinstance(row.get(name), list):
        return text(row, name)
    messages = each(row, name, _message)
    if [message["role"] for message in messages] != ["assistant"]:
        raise UserError(f'"{name}" must hold exactly one message, the assistant\'s')
    return messages[0]["content"]


def _message(row: Row) -> Message:
    return {"role": text(row, "role"), "content": text(row, "content")}
