"""Records as rows of an Arrow table, in memory or in Parquet files, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import Row
from data_modules.sources.messages import Conversation
from data_modules.sources.preferences import PreferencePair
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = {RankingRecord: "rankings", PreferencePair: "ready-made pairs", Conversation: "conversations"}
HOMES = {
    RankingRecord: "train, val and candidates",
    PreferencePair: "PreferenceDataModule's train and val",
    Conversation: "replay",
}
KINDS = tuple(NAMES)


def to_row(record: Any) -> Row:
    """A record as a row: what has keys of its own becomes a list, for a column has one type."""
    row = asdict(record)
    if isinstance(record, PreferencePair):
        row["prompt"] = json.dumps(record.prompt)  # text or messages
    if isinstance(record, RankingRecord) and record.qrels is not None:
        row["qrels"] = [{"docid": docid, "grade": grade} for docid, grade in record.qrels.items()]
    return row


def to_record(row: Mapping[str, Any]) -> RankingRecord:
    """A row of the table as the record it was made from."""
    check_kind(kind_of(row), [RankingRecord])
    qrels: Sequence[Mapping[str, Any]] | None = row["qrels"]
    return RankingRecord(
        qid=row["qid"],
        query=row["query"],
        passages=tuple(Passage(p["docid"], p["text"], p.get("score")) for p in row["passages"]),
        permutation=None if row["permutation"] is None else tuple(row["permutation"]),
        choices=row["choices"],
        qrels=None if qrels is None else {judged["docid"]: judged["grade"] for judged in qrels},
    )


def from_row(row: Mapping[str, Any]) -> Any:
    """The record of any kind that a row was made from."""
    kind = kind_of(row)
    if kind is PreferencePair:
        return PreferencePair(json.loads(row["prompt"]), row["chosen"], row["rejected"])
    return Conversation(tuple(row["messages"])) if kind is Conversation else to_record(row)


def kind_of(row: Mapping[str, Any]) -> type:
    """Of which kind the record is that a row was made from."""
    if "chosen" in row:
        return PreferencePair
    return Conversation if "messages" in row or ("text" in row and "passages" not in row) else RankingRecord


def check_kind(kind: type, wanted: Sequence[type]) -> None:
    """Raise a UserError unless a kind of record is one of those that are wanted."""
    if not issubclass(kind, tuple(wanted)):
        needed = " or ".join(NAMES[one] for one in wanted)
        raise UserError(f"{NAMES[kind]} are for {HOMES[kind]}; here {needed} are needed")


def schema(kind: type) -> "pa.Schema":
    """The columns of a kind of record, one of `KINDS`. Files that are written apart have the same."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    passage = pa.struct({"docid": text, "text": text, "score": pa.float64()})
    columns = {
        RankingRecord: {
            "qid": text,
            "query": text,
            "passages": pa.list_(passage),
            "permutation": pa.list_(whole),
            "choices": whole,
            "qrels": pa.list_(pa.struct({"docid": text, "grade": whole})),
        },
        PreferencePair: {"prompt": text, "chosen": text, "rejected": text},
        Conversation: {"messages": pa.list_(pa.struct({"role": text, "content": text}))},
    }
    return pa.schema(columns[kind])
