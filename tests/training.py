"""What the tests of training share: data files, the real entry point, and what a run leaves behind."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from data_modules.prepare import prepare
from data_modules.records import RankingRecord
from data_modules.sources.own import write_jsonl
from lit_rerank.cli import train
from tests.tiny import record

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def write_candidates(records: Sequence[RankingRecord], candidates: Path, qrels: Path) -> None:
    rows = [
        {"qid": r.qid, "query": r.query, "candidates": [{"docid": p.docid, "text": p.text} for p in r.passages]}
        for r in records
    ]
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels.write_text("".join(f"{r.qid} 0 {d} {g}\n" for r in records for d, g in (r.qrels or {}).items()))


def write_data(folder: Path, train: int = 8, val: int = 2, candidates: int = 2) -> Path:
    """The files that configs/data name, under `folder`/data."""
    data = folder / "data"
    data.mkdir(parents=True)
    write_jsonl([record(f"t{i}", 3 + i % 3) for i in range(train)], data / "train.jsonl")
    prepare(str(data / "train.jsonl"), output=data / "train.shards", shard_records=3)
    write_jsonl([record(f"v{i}", 4) for i in range(val)], data / "val.jsonl")
    lists = [record(f"c{i}", 4) for i in range(candidates)]
    write_candidates(lists, data / "val.candidates.jsonl", data / "val.qrels.txt")
    talks = [[("user", f"What is {i} and {i}?"), ("assistant", f"It is {2 * i}.")] for i in range(5)]
    rows = [{"messages": [{"role": role, "content": said} for role, said in talk]} for talk in talks]
    (data / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(
    task: str, backbone: str, data: str, run: str, *more: str, model: Path | str, stage: str = "fit"
) -> list[str]:
    """Arguments of train.py, composed of configs as a user would."""
    files = ("trainer/default", f"model/{task}", f"backbone/{backbone}", f"data/{data}")
    configs = [word for name in files for word in ("--config", str(CONFIGS / f"{name}.yaml"))]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    here = [f"--model.init_args.backbone.model={model}", f"--trainer.default_root_dir={run}"]
    return [stage, *configs, *here, *quiet, *more]


def bare_trainer(folder: Path, callback: L.Callback, **options: Any) -> L.Trainer:
    """Lightning's own, on the CPU, with one callback and nothing of what it adds by itself but a bar."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", callbacks=[callback], **quiet, **options)


def train_in(folder: Path, args: Sequence[str]) -> None:
    """train.py in this process, run in `folder`."""
    with contextlib.chdir(folder):
        train(args)


def figures(run: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl says about each step (from 1); a later line wins."""
    steps: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row.pop("step") + 1, {}).update(row)
    return steps


class Crash(L.Callback):
    """Ends training before step `at` + 1 begins, as a power cut would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.at:
            raise RuntimeError("power cut")


class Stop(Crash):
    """Asks training to stop after step `at`, as a Timer does."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.at:
            trainer.should_stop = True


class CrashBeforeValidation(Crash):
    """The same, before the validation that follows step `at`."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        pass

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == self.at and not trainer.sanity_checking:
            raise RuntimeError("power cut")
