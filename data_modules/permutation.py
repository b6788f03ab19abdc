"""Windows with teacher permutations, for supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any

from data_modules.base import RankingDataModule
from data_modules.rows import to_record
from data_modules.windows import generator
from lit_rerank.encoding import EncodedWindow


class PermutationDataModule(RankingDataModule[EncodedWindow]):
    """Encoded windows with the teacher's order as their completion."""

    def example(self, row: Mapping[str, Any], epoch: int, index: int) -> EncodedWindow:
        window = self.augmentation.draw(to_record(row), generator(self.seed, epoch, index))
        return self.encoder.encode(window, self.choices)
