"""Map-style datasets over records that are held in memory, and the batches that they come in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch.utils.data import Dataset

from data_modules.mixture import Mixture
from data_modules.records import RankingRecord
from data_modules.rows import to_record
from data_modules.windows import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    import datasets

Example = TypeVar("Example")


class Batch(Generic[Example]):
    """Examples of one step. On purpose no list: some precisions (bf16-true, DeepSpeed's) cast what lists hold.

    Lightning looks for tensors in every collection, and stops with an error at frozen dataclasses.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Batch | list) else NotImplemented


class DrawnExamples(Dataset[Any]):
    """The examples drawn from records, by (epoch, index).

    Args:
        rows: the records.
        mixture: which of them come in an epoch, and in which order.
        per_record: examples of each.
        draw: the example that is drawn from a row at (epoch, index).
        tokens: roughly how many the window takes that is drawn at (epoch, index) from so many passages.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        mixture: Mixture,
        per_record: int,
        draw: Callable[[Mapping[str, Any], int, int], Any],
        tokens: Callable[[int, int, int], int],
    ) -> None:
        self.rows, self.mixture, self.per_record = rows, mixture, per_record
        self.draw, self.tokens = draw, tokens
        self.sizes = _sizes(rows)

    def __len__(self) -> int:
        return len(self.mixture) * self.per_record

    def __getitem__(self, key: tuple[int, int]) -> Any:
        number, done, index = self._drawn(key)
        return self.draw(self.rows[number], done, index)

    def length(self, key: tuple[int, int]) -> int:
        """Roughly how many tokens an example takes."""
        number, done, index = self._drawn(key)
        if self.sizes is None:
            pair = self.rows[number]
            return sum(len(pair[part]) for part in ("prompt", "chosen", "rejected")) // CHARACTERS_PER_TOKEN
        return self.tokens(self.sizes[number], done, index)

    def _drawn(self, key: tuple[int, int]) -> tuple[int, int, int]:
        """The record's number, and by which (pass, index) its window is drawn."""
        epoch, index = key
        done, number = self.mixture.record(epoch, index // self.per_record)
        return number, done, number * self.per_record + index % self.per_record


class Candidates(Dataset[RankingRecord]):
    """Candidate lists, whole."""

    def __init__(self, rows: "datasets.Dataset") -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> RankingRecord:
        return to_record(self.rows[key[1]])


def _sizes(rows: "datasets.Dataset") -> list[int] | None:
    """How many passages each record has, without reading them; None of ready-made pairs."""
    import pyarrow.compute as pc

    if "passages" not in rows.column_names:
        return None
    sizes: list[int] = pc.list_value_length(rows.data.column("passages")).to_pylist()
    return sizes
