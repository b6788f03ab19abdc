"""A loss that is no number: the batches that gave it, written down to be looked at and read again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from data_modules.records import RankingRecord, Window
from data_modules.sources.base import Row, write_rows
from data_modules.sources.own import to_row
from lit_rerank.chat import ChatTokenizer
from lit_rerank.preferences import PreferenceExample
from lit_rerank.replay import EncodedConversation

FOLDER = "nonfinite"


@dataclass(frozen=True)
class Read:
    """A batch that the model has read.

    Attributes:
        examples: windows (or preferences) and conversations.
        windows: (windows,) the loss of each window that has one.
        replay: (conversations,) the loss of each conversation.
    """

    examples: Sequence[Any]
    windows: Tensor
    replay: Tensor

    @property
    def finite(self) -> bool:
        return all(map(isfinite, (*self.windows.tolist(), *self.replay.tolist())))

    def losses(self) -> Iterator[tuple[Any, float | None]]:
        """Each example with its loss; None where it has none, or nobody can tell which it is."""
        conversations = [e for e in self.examples if isinstance(e, EncodedConversation)]
        windows = [e for e in self.examples if not isinstance(e, EncodedConversation)]
        for examples, losses in ((windows, self.windows.tolist()), (conversations, self.replay.tolist())):
            yield from zip(examples, losses if len(losses) == len(examples) else [None] * len(examples), strict=True)


def write_batches(batches: Sequence[Read], chat: ChatTokenizer, folder: Path, name: str) -> list[Path]:
    """Write the examples of batches as JSON lines that sources read; `batch` and `loss` (a string) stand in each.

    Returns:
        The files, `<name>.windows.jsonl` (for `JsonlSource`), `<name>.pairs.jsonl` (`PairsSource`) and
        `<name>.conversations.jsonl` (`MessagesSource`), as far as there is something to write.
    """
    rows: dict[str, list[Row]] = {}
    for number, batch in enumerate(batches):
        for example, loss in batch.losses():
            kind, row = _row(example, chat)
            rows.setdefault(kind, []).append({**row, "batch": number, "loss": None if loss is None else str(loss)})
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name}.{kind}.jsonl": some for kind, some in rows.items()}
    for file, some in files.items():
        write_rows(some, file)
    return list(files)


def _row(example: Any, chat: ChatTokenizer) -> tuple[str, Row]:
    """What an example was made of, and the kind of file that holds such."""
    if isinstance(example, EncodedConversation):
        return "conversations", {"messages": list(example.messages)}
    window: Window | None = example.window
    if window is not None:
        return "windows", to_row(_record(window))
    return "pairs", _pair(example, chat)


def _record(window: Window) -> RankingRecord:
    grades = window.grades
    qrels = None if grades is None else {p.docid: g for p, g in zip(window.passages, grades, strict=True)}
    return RankingRecord(window.qid, window.query, window.passages, window.permutation, window.choices, qrels)


def _pair(example: PreferenceExample, chat: ChatTokenizer) -> Row:
    """A ready-made pair, as far as its tokens tell."""

    def text(ids: Sequence[int]) -> str:
        return str(chat.tokenizer.decode(list(ids))).removesuffix(chat.end_of_turn)

    (preference,) = example.preferences
    prompt, chosen = example.ids[: preference.start], example.ids[preference.start : preference.end]
    return {"prompt": text(prompt), "chosen": text(chosen), "rejected": text(preference.rejected[0])}
