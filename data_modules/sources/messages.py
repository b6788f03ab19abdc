"""Conversations of instruction data, and plain texts."""

from dataclasses import dataclass
from pathlib import Path

from data_modules.sources.base import OnError, Row, each, text
from data_modules.sources.dataset import DatasetSource
from lit_rerank.chat import TEXT
from lit_rerank.errors import UserError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """What user and assistant say in turn, `{"role", "content"}` each; or a text that nobody says, of the role `text`.

    Raises:
        UserError: for an unknown role, a turn without text, a text among turns, or where the assistant answers nobody
            or not at all.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if [message["role"] for message in self.messages] == [TEXT]:
            if not self.messages[0]["content"].strip():
                raise UserError("the text is empty")
            return
        for number, message in enumerate(self.messages, start=1):
            if message["role"] not in ROLES:
                raise UserError(f"message {number} is of {message['role']!r}; roles are {', '.join(ROLES)}")
            if not message["content"].strip() and message["role"] != "system":
                raise UserError(f"message {number}, of the {message['role']}, is empty")
        roles = [message["role"] for message in self.messages]
        if "assistant" not in roles:
            raise UserError("the assistant says nothing: there is nothing to learn")
        if "user" not in roles[: roles.index("assistant")]:
            raise UserError("the assistant speaks before the user")


class MessagesSource(DatasetSource[Conversation]):
    """One conversation for each row, as most instruction data is published, or a text; other fields are not read.

        {"messages": [{"role": "user", "content": "How long do fleas live?"},
         {"role": "assistant", "content": "Up to a hundred days."}]}
        {"text": "Fleas are small insects without wings."}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, a JSON array (`.json`, `.json.gz`), a `.parquet` file, a directory of
            dataset files, or a dataset on the Hub, such as `HuggingFaceTB/smol-smoltalk`.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(path, on_error, example="HuggingFaceTB/smol-smoltalk")

    def _record(self, row: Row) -> Conversation:
        return conversation(row)


def conversation(row: Row) -> Conversation:
    """`{"messages": [...]}`, or `{"text": str}` where there are none."""
    if row.get("messages") is None and "text" in row:  # in a table every row has all columns
        return Conversation(({"role": TEXT, "content": text(row, "text")},))
    return Conversation(each(row, "messages", message))


def message(row: Row) -> Message:
    """`{"role": str, "content": str}`"""
    return {"role": text(row, "role"), "content": text(row, "content")}
