"""Sources, whole or in parts: into `datasets`, where they are held in memory, and the shards of those that are not."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from data_modules.rows import check_kind, kind_of, to_row
from data_modules.sources.base import Row, Source
from data_modules.sources.mixed import MixedSource
from data_modules.sources.shards import ShardsSource
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    import datasets


def weights_of(source: Source | None) -> Sequence[float] | None:
    """How the parts of a mixture are weighted, if they are."""
    return source.weights if isinstance(source, MixedSource) else None


def unmixed(source: Source) -> Iterator[Source]:
    """What is mixed, however deep, or the source itself."""
    if not isinstance(source, MixedSource):
        yield source
        return
    for part in source.sources:
        yield from unmixed(part)


def load(name: str, source: Source, kinds: Sequence[type]) -> tuple["datasets.Dataset", list[int]]:
    """A source's records as an Arrow table, and how many each part of it has; what was left out is reported.

    Raises:
        UserError: if it or a part with a weight holds no record, or one that is of none of these kinds or of another
            than the first.
    """
    import datasets

    rows: list[Row] = []
    sizes: list[int] = []
    for part in _parts(source):
        rows += _rows(name, part, kinds)
        sizes.append(len(rows) - sum(sizes))
        if part.skipped:
            rank_zero_info(f"{name}: {len(part.skipped)} lines skipped, the first: {part.skipped[0]}")
    source.skipped = [line for part in _parts(source) for line in part.skipped]
    if not rows:
        raise UserError(f"data.init_args.{name}: the source holds no record")
    if len({kind_of(row) for row in rows}) > 1:
        raise UserError(
            f"data.init_args.{name}: mixes rankings and ready-made pairs, which share no table: train on one of them, "
            "then on the other"
        )
    if 0 in sizes and weights_of(source):
        raise UserError(f"data.init_args.{name}: source {sizes.index(0) + 1} of the mixture holds no record")
    return datasets.Dataset.from_list(rows), sizes


def shards_of(source: Source | None) -> list[ShardsSource]:
    """The parts of what training streams.

    Raises:
        UserError: if there is none, or one that is not in shards.
    """
    if source is None:
        raise UserError("data.init_args.train is not set: there is nothing to train on")
    parts = [part for part in _parts(source) if isinstance(part, ShardsSource)]
    if len(parts) < len(_parts(source)):
        raise UserError(
            "data.streaming reads shards: set data.init_args.train to data_modules.sources.ShardsSource (or a "
            "MixedSource of them), with the folder that python -m data_modules.prepare makes of your source"
        )
    return parts


def _parts(source: Source) -> Sequence[Source]:
    """What is mixed, or the source itself."""
    return source.sources if isinstance(source, MixedSource) else [source]


def _rows(name: str, source: Source, kinds: Sequence[type]) -> Iterator[Row]:
    """A source's records as rows, or a UserError where one is of none of these kinds."""
    for record in source:
        try:
            check_kind(type(record), kinds)
        except UserError as error:
            raise UserError(f"data.init_args.{name}: {error}") from None
        yield to_row(record)
