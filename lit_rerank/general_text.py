"""General text, by which bits per byte are measured: what lm-eval ships, or a file."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_modules.sources.base import Source, existing_file, text
from lit_rerank.errors import UserError
from lit_rerank.questions import SHIPPED, shipped_explanations, spread

_WORKED = re.compile(r"^Let's think step by step\.\s*|We refer to Wikipedia[^.]*for help\.\s*|\s*The answer is \(.\)\.")
_SPLIT = re.compile(rb"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Document:
    """A text that is read from its beginning."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UserError("a document is empty")

    @property
    def id(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


class DocumentsSource(Source[Document]):
    """The documents of a file: {"text": str} a line of `.jsonl` or `.jsonl.gz`; of any other, its paragraphs."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = existing_file(path)

    def _read(self) -> Iterator[Document]:
        if ".jsonl" in self.path.suffixes:
            return self._jsonl(self.path, lambda row: Document(text(row, "text")))
        paragraphs = (part for part in _SPLIT.split(self.path.read_bytes()) if part.strip())
        return self._build(((f"{self.path}: paragraph {i}", part) for i, part in enumerate(paragraphs, 1)), _decoded)


def open_documents(named: str | None, limit: int | None = None) -> list[Document]:
    """The documents of a file, or those `shipped`; of these only `limit`, spread evenly over all."""
    if named is None:
        return []
    documents = shipped_documents() if named == SHIPPED else list(DocumentsSource(named))
    if not documents:
        raise UserError(f"{named} holds no text")
    return spread(documents, limit)


def _decoded(paragraph: bytes) -> Document:
    try:
        return Document(paragraph.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte {error.start + 1} of the paragraph") from None


def shipped_documents() -> list[Document]:
    """Prose on MMLU's 57 subjects, a document each: lm-eval ships explanations of the dev questions' answers.

    Written by people about general knowledge, 68,621 bytes in all; nothing here trains on it.
    """
    by_subject: dict[str, list[str]] = {}
    for subject, explanation in shipped_explanations():
        by_subject.setdefault(subject, []).append(_WORKED.sub("", explanation).strip())
    return [Document("\n".join(filter(None, explanations))) for explanations in by_subject.values()]
