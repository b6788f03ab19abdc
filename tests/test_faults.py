"""Three of the kills of `make test-faults`."""

import dataclasses
from pathlib import Path

from tests.faults.matrix import MATRIX, prepare
from tests.faults.runs import killed_and_resumed


def test_a_training_that_is_killed_three_times_is_as_if_it_never_was(tmp_path: Path) -> None:
    (row,) = (row for row in MATRIX if row.name == "sft-lora-workers")
    outcome = killed_and_resumed(prepare(tmp_path), dataclasses.replace(row, kills=3), seed=1)
    assert outcome["difference"] == 0, outcome
    assert len(outcome["kills"]) == 3
    assert outcome["figures"] > 100
