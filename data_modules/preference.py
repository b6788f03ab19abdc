"""Preferences, for DPO: those of teacher permutations' steps, or ready-made pairs."""

import json
from collections.abc import Mapping
from typing import Any

from data_modules.base import RankingDataModule
from data_modules.records import RankingRecord
from data_modules.rows import to_record
from data_modules.sources import PreferencePair
from data_modules.windows import generator
from lit_rerank.preferences import Negatives, PreferenceExample


class PreferenceDataModule(RankingDataModule[PreferenceExample]):
    """The preferences of windows, or ready-made prompt / chosen / rejected data (`PairsSource`) as it stands.

    Args:
        negatives: what stands against the teacher's choices: `on_policy`, `hardest`, `sampled:m`, `all` or `sequence`.
        kwargs: those of `RankingDataModule`.
    """

    learned = (RankingRecord, PreferencePair)

    def __init__(self, negatives: str = "on_policy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.negatives = Negatives.parse(negatives)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data.negatives": str(self.negatives)}

    def example(self, row: Mapping[str, Any], epoch: int, index: int) -> PreferenceExample:
        if "chosen" in row:
            return self._pair(row, index)
        draw = generator(self.seed, epoch, index)
        window = self.augmentation.draw(to_record(row), draw)
        return self.negatives.example(self.encoder.encode(window, self.choices), self.encoder, draw)

    def _pair(self, row: Mapping[str, Any], index: int) -> PreferenceExample:
        return PreferenceExample.pair(
            str(index), *self.encoder.encode_pair(json.loads(row["prompt"]), row["chosen"], row["rejected"])
        )
