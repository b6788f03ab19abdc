"""A teacher's listwise calls, with the passages' texts in a file of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, Row, Source, existing_file, field, is_text, text, whole_numbers
from lit_rerank.errors import UserError


class TeacherWindowsSource(Source[RankingRecord]):
    """One record for each window that a teacher ordered, from two files.

        windows:  {"qid": str, "query": str, "docids": [in prompt order], "permutation": [identifiers, best first]}
        passages: {"docid": str, "text": str}

    Args:
        windows, passages: `.jsonl` or `.jsonl.gz` files.
        on_error: `raise` or `skip`, for the lines of both files.
    """

    def __init__(self, windows: str | Path, passages: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.windows = existing_file(windows)
        self.passages = existing_file(passages)

    def _read(self) -> Iterator[RankingRecord]:
        texts: dict[str, str] = {}
        for passage in self._jsonl(self.passages, lambda row: _new_passage(row, texts)):
            texts[passage.docid] = passage.text
        yield from self._jsonl(self.windows, lambda row: _record(row, texts))


def _new_passage(row: Row, texts: dict[str, str]) -> Passage:
    passage = Passage(text(row, "docid"), text(row, "text"))
    if texts.get(passage.docid, passage.text) != passage.text:
        raise UserError(f"docid {passage.docid!r} has another text further up")
    return passage


def _record(row: Row, texts: dict[str, str]) -> RankingRecord:
    docids = field(row, "docids", _is_text_list, "a list of strings")
    unknown = [docid for docid in docids if docid not in texts]
    if unknown:
        raise UserError(f"the passages file lacks docid {unknown[0]!r}")
    return RankingRecord(
        qid=text(row, "qid"),
        query=text(row, "query"),
        passages=tuple(Passage(docid, texts[docid]) for docid in docids),
        permutation=whole_numbers(row, "permutation"),
    )


def _is_text_list(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(map(is_text, value))
