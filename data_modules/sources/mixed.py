"""Several sources as one."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_modules.mixture import check_weights
from data_modules.sources.base import Source
from lit_rerank.errors import UserError


class MixedSource(Source[Any]):
    """The records of several sources; the data module shuffles them.

    Args:
        sources: what is mixed.
        weights: their shares of a training epoch, of any sum. The epoch keeps its length, which is the number of all
            records: some come twice or more in it, or wait for the next. Null: every record once.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.sources, self.weights = sources, weights
        if not sources:
            raise UserError("MixedSource needs one source or more")
        if any(isinstance(source, MixedSource) and source.weights for source in sources):
            raise UserError("MixedSource: a mixture with weights cannot stand in another one: mix all of them in one")
        check_weights(weights, len(sources))

    def _read(self) -> Iterator[Any]:
        for source in self.sources:
            yield from source
            self.skipped += source.skipped
