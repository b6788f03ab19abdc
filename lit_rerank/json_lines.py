"""What a run logs, as lines of JSON."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLinesLogger(Logger):
    """Every logged figure as one JSON object a line: `<save_dir>/metrics.jsonl`."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.jsonl"
        self._first = True

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._first:
            _cut_off_half_a_line(self.path)
            self._first = False
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Kept by the run folder's config.yaml."""


def _cut_off_half_a_line(path: Path) -> None:
    """What a run that was killed while it wrote has left at the end of a file of lines."""
    if path.is_file():
        written = path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            os.truncate(path, whole)
