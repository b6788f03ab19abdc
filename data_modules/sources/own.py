"""The project's own layout, read and written."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import (
    OnError,
    Row,
    Source,
    each,
    existing_file,
    field,
    is_grades,
    is_whole,
    passage,
    text,
    whole_numbers,
    write_rows,
)


class JsonlSource(Source[RankingRecord]):
    """Records in the project's own layout, one object a line.

        {"qid": str, "query": str, "passages": [{"docid": str, "text": str, "score"?: float}, ...],
         "permutation"?: [1-based identifiers, best first], "choices"?: how many of these are known (all),
         "qrels"?: {docid: grade}}

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        on_error: `raise` or `skip`.
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[RankingRecord]:
        return self._jsonl(self.path, ranking)


def write_jsonl(records: Iterable[RankingRecord], path: str | Path) -> None:
    """Write the layout that `JsonlSource` reads. The file is put in place only once it is whole."""
    write_rows(map(to_row, records), path)


def ranking(row: Row) -> RankingRecord:
    """The record of an object in the project's own layout."""
    return RankingRecord(
        qid=text(row, "qid"),
        query=text(row, "query"),
        passages=each(row, "passages", passage),
        permutation=None if row.get("permutation") is None else whole_numbers(row, "permutation"),
        choices=None if row.get("choices") is None else field(row, "choices", is_whole, "a whole number"),
        qrels=None if row.get("qrels") is None else field(row, "qrels", is_grades, "an object of whole numbers"),
    )


def to_row(record: RankingRecord) -> Row:
    """A record as an object of the layout."""
    row: Row = {"qid": record.qid, "query": record.query, "passages": list(map(_passage_row, record.passages))}
    if record.permutation is not None:
        row["permutation"] = list(record.permutation)
    if record.choices is not None:
        row["choices"] = record.choices
    if record.qrels is not None:
        row["qrels"] = dict(record.qrels)
    return row


def _passage_row(passage: Passage) -> Row:
    row: Row = {"docid": passage.docid, "text": passage.text}
    return row if passage.score is None else row | {"score": passage.score}
