"""Rows of a dataset: a file, a directory of files, or a dataset on the Hub."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_modules.files import user_path
from data_modules.sources.base import OnError, Row, Source, as_object
from lit_rerank.errors import UserError

Record = TypeVar("Record")

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.json)(?<!\.jsonl)(?<!\.gz)(?<!\.parquet)")


class DatasetSource(Source[Record]):
    """One record for each row of a JSONL file, a JSON array, a Parquet file, a directory or the Hub's train split.

    Args:
        path: file, directory or Hub id.
        on_error: `raise` or `skip`.
        example: a Hub id to name where `path` is nothing that could be read.
    """

    def __init__(self, path: str | Path, on_error: OnError, example: str) -> None:
        super().__init__(on_error)
        self.path = user_path(path)
        if not self.path.exists() and not HUB_ID.fullmatch(str(path)):
            raise UserError(f"{path} does not exist, and is no Hub id such as {example}")
        if all((self.path / name).is_file() for name in ("manifest.json", "00000.parquet")):
            raise UserError(f"{path} holds prepared shards: take ShardsSource, which compares them with their manifest")

    @abstractmethod
    def _record(self, row: Row) -> Record: ...

    def _read(self) -> Iterator[Record]:
        if self.path.is_file() and self.path.suffix != ".parquet":
            return self._json(self.path, self._record)
        rows = enumerate(_dataset(self.path), start=1)
        numbered = ((f"{self.path}: record {number}", row) for number, row in rows)
        return self._build(numbered, lambda row: self._record(as_object(row)))


def _dataset(path: Path) -> Iterable[Any]:
    from datasets import load_dataset

    try:
        if path.suffix == ".parquet" and not path.is_dir():
            return load_dataset("parquet", data_files=str(path), split="train")
        return load_dataset(str(path), split="train")
    except Exception as error:  # whatever the Hub, the network or the files may bring
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be loaded, neither from disk nor from the Hub: {reason}") from error
