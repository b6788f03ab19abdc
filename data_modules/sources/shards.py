"""Records in Parquet or JSONL shards, on disk or elsewhere; read whole, or streamed (see `data_modules.stream`)."""

import hashlib
import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules import manifest, rows  # the modules: they import sources themselves
from data_modules.files import user_path
from data_modules.sources.base import Row, Source, each, field, is_whole, parse_object, text
from data_modules.sources.dataset import HUB_ID
from data_modules.sources.messages import Conversation, conversation
from data_modules.sources.own import ranking
from data_modules.sources.preferences import PreferencePair, pair
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".parquet", ".jsonl", ".jsonl.gz")
CHUNK = 64  # records that are read at a time


class ShardsSource(Source[Any]):
    """Rankings, preference pairs or conversations in files of one folder, in the order of their names.

    `python -m data_modules.prepare` makes such a folder of any source, with a `manifest.json`. Any other is as good
    whose Parquet files have the same columns, or whose JSONL files have the layouts of `JsonlSource`, `PairsSource` or
    `MessagesSource`.

    Args:
        path: a folder, a file, a URL that fsspec knows (`s3://...`), or a dataset on the Hub that holds such files.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path, self._absent = str(path).rstrip("/"), ""
        if user_path(self.path).exists():
            self.path = str(user_path(self.path).resolve())
        elif HUB_ID.fullmatch(self.path):
            self._absent = f"{path} does not exist here, and as a dataset on the Hub "
            self.path = f"hf://datasets/{self.path}"
        elif "://" not in self.path:
            raise UserError(f"{path} does not exist, and is no Hub id such as your-name/prepared-rankings")

    @cached_property
    def manifest(self) -> "manifest.Manifest | None":
        """What is known of the shards; None where there is no manifest."""
        return None if self._manifest is None else manifest.Manifest.parse(*self._manifest)

    @cached_property
    def files(self) -> list[str]:
        """The shards' paths or URLs."""
        if self.manifest is not None:
            return [f"{self.path}/{shard.name}" for shard in self.manifest.shards]
        if self._is_file:
            return [self.path]
        found = [file for file in map(self._file, self._listed) if file.endswith(KINDS)]
        parquet = sum(file.endswith(".parquet") for file in found)
        if not found or parquet not in (0, len(found)):
            raise UserError(
                f"{self.path} must hold either .parquet files or .jsonl files, and holds {parquet} of the one and "
                f"{len(found) - parquet} of the other"
            )
        return found

    @cached_property
    def counts(self) -> list[int | None]:
        """How many records each shard has, by the manifest."""
        if self.manifest is None:
            return [None] * len(self.files)
        return [shard.records for shard in self.manifest.shards]

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self) -> Iterator[Any]:
        for shard in range(len(self.files)):
            first = 0
            for table in self.tables(shard):
                yield from (rows.from_row(self.decode(table, i, shard, first + i)) for i in range(table.num_rows))
                first += table.num_rows

    def tables(self, shard: int) -> Iterator["pa.Table"]:
        """The records of a shard, a few at a time: rows of Parquet, or lines.

        Raises:
            UserError: where the shard cannot be read (any further), or holds another number of records than the
                manifest says.
        """
        read, meant = 0, self.counts[shard]
        try:
            tables = map(_without_blanks, self._streams.shard(len(self.files), shard).iter(CHUNK))
            for table in tables:
                read += table.num_rows
                if meant is not None and read >= meant:
                    # Whoever takes no more than the manifest says would not come to what follows.
                    read += sum(following.num_rows for following in tables)
                    if read > meant:
                        break
                yield table
        except Exception as error:  # whatever the disk, the network or the files may bring
            raise UserError(f"{self.files[shard]}: cannot be read after {read} records: {_reason(error)}") from error
        if meant not in (None, read):
            raise UserError(f"{self.files[shard]} holds {read} records; {manifest.NAME} beside it says {meant}")

    def decode(self, table: "pa.Table", i: int, shard: int, number: int) -> Row:
        """Row `i` of a table, which is the record `number` (from 0) of its shard."""
        try:
            row = _row(table, i)
            if self.files[shard].endswith(".parquet"):
                _record(_unpacked(row))  # columns tell nothing of what may be missing
                return row
            return rows.to_row(_record(parse_object(row["text"].encode().removeprefix(BOM_UTF8))))
        except UserError as error:
            raise UserError(f"{self.files[shard]}: record {number + 1}: {error}") from None

    @cached_property
    def _streams(self) -> Any:
        from datasets import load_dataset

        parquet = self.files[0].endswith(".parquet")
        files = list(map(escape, self.files))  # they are taken for patterns
        options: dict[str, Any] = {"batch_size": CHUNK} if parquet else {}  # the default fails without rows
        options |= {"data_files": files, "split": "train", "streaming": True}
        streams = self._called(lambda: load_dataset("parquet" if parquet else "text", **options))
        columns = streams.column_names
        kinds = rows.KINDS if self.manifest is None else [self.manifest.record]
        if parquet and not any(columns == rows.schema(kind).names for kind in kinds):
            meant = "prepared records" if self.manifest is None else f"the {self.manifest.kind} of {manifest.NAME}"
            raise UserError(
                f"{self.path}: its columns {_line(', '.join(columns))} are not those of {meant}: prepare it with "
                "python -m data_modules.prepare"
            )
        return streams.with_format("arrow")

    # -- files --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise a UserError where a shard is missing, of another size than the manifest says, or no table."""
        for shard in self.manifest.shards if self.manifest else ():
            file = f"{self.path}/{shard.name}"
            size = self._called(lambda file=file: self._size(file))
            if size is None:
                raise UserError(f"{file} is missing; {manifest.NAME} beside it names it")
            if size != shard.bytes:
                raise UserError(f"{file} has {size} bytes; {manifest.NAME} beside it says {shard.bytes}")
        self._streams  # noqa: B018 (opened before processes are forked, which then need not)

    def check_content(self) -> None:
        """Raise a UserError where a shard on disk is not, to the byte, the one that the manifest describes."""
        self.check()
        for shard in self.manifest.shards if self.manifest and "://" not in self.path else ():
            file = Path(self.path, shard.name)
            if self._called(lambda file=file: hash_of(file)) != shard.sha256:
                raise UserError(f"{file} is not the file that {manifest.NAME} beside it describes")

    @property
    def _system(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self.path)[0]

    @cached_property
    def _is_file(self) -> bool:
        """Whether there is one shard alone. A folder may be called as a file is: Spark does so."""
        return self.path.endswith(KINDS) and self._called(lambda: self._system.info(self.path)["type"]) != "directory"

    @cached_property
    def _listed(self) -> list[str]:
        return sorted(map(str, self._called(lambda: self._system.ls(self.path, detail=False))))

    @cached_property
    def _manifest(self) -> tuple[bytes, str] | None:
        place = f"{self.path}/{manifest.NAME}"
        if self._is_file:
            return None
        found = self._called(lambda: self._system.cat_file(place) if self._system.exists(place) else None)
        return None if found is None else (found, place)

    def _size(self, file: str) -> int | None:
        """Bytes of a file, None where there is none."""
        try:
            size: int = self._system.info(file)["size"]
        except FileNotFoundError:
            return None
        return size

    def _file(self, listed: str) -> str:
        """A path as listed, as a path or URL."""
        return f"{self.path}/{listed.rpartition('/')[2]}"

    def _called(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # whatever the disk or the network may bring
            raise UserError(f"{self._absent}{self.path}: cannot be read: {_reason(error)}") from error


def _row(table: "pa.Table", i: int) -> Row:
    try:
        row: Row = table.slice(i, 1).to_pylist()[0]
    except Exception as error:  # texts that are no UTF-8, times that Python does not know
        raise UserError(f"cannot be read: {_reason(error)}") from error
    return row


def _reason(error: Exception) -> str:
    return _line(str(error)) or type(error).__name__


def _line(said: str) -> str:
    return " ".join(said.split())


def _record(row: Row) -> Any:
    """The record of any kind of an object in its JSON layout."""
    kind = rows.kind_of(row)
    if kind is PreferencePair:
        return pair(row)
    return conversation(row) if kind is Conversation else ranking(row)


def _unpacked(row: Row) -> Row:
    """A row of Parquet in its JSON layout."""
    if "chosen" in row:
        return row | {"prompt": _parsed(text(row, "prompt"))}
    if row.get("qrels") is not None:
        return row | {"qrels": _grades(each(row, "qrels", _judged))}
    return row


def _grades(judged: Sequence[tuple[str, int]]) -> dict[str, int]:
    for docid, count in Counter(docid for docid, _ in judged).items():
        if count > 1:
            raise UserError(f'"qrels" judges docid {docid!r} {count} times')
    return dict(judged)


def _judged(row: Row) -> tuple[str, int]:
    return text(row, "docid"), field(row, "grade", is_whole, "a whole number")


def _parsed(prompt: str) -> Any:
    try:
        return json.loads(prompt)
    except (ValueError, RecursionError):
        raise UserError('"prompt" must be JSON: a text or messages') from None


def hash_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _without_blanks(table: "pa.Table") -> "pa.Table":
    """Without the blank lines of a text."""
    import pyarrow.compute as pc

    if table.column_names != ["text"]:
        return table
    return table.filter(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table.column("text"))), 0))
