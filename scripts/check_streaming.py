"""`make check-streaming`: streamed records over processes and workers, each exactly once, in memory that stays flat.

Two processes (gloo) of two workers each train a module of a single weight on shards, by Lightning's Trainer, through
the project's data module: records are read, windows drawn and encoded as in any training.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import lightning as L
import torch

from data_modules import PermutationDataModule
from data_modules.examples import Batch
from data_modules.prepare import prepare
from data_modules.records import Passage, RankingRecord
from data_modules.sources import ShardsSource
from data_modules.sources.own import write_jsonl
from data_modules.windows import Augmentation
from lit_rerank.cli import in_one_line
from lit_rerank.encoding import EncodedWindow
from lit_rerank.errors import UserError

MODEL = "models/smollm2-135m-instruct"
MEGABYTE = 2**20
LIMIT = 50  # MB by which no process may grow
WORDS = ("fleas", "live", "for", "a", "hundred", "days", "on", "dogs", "and", "cats", "where", "it", "is", "warm")
WARM = 0.1  # share of an epoch after which nothing should grow


class Seen(L.LightningModule):
    """Learns nothing, and writes down what it sees: `seen-<rank>.txt`, a qid a line, and `memory-<rank>.json`.

    Args:
        folder: where it writes.
        every: batches between two looks at the memory of this process and of its workers.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder, self.every = folder, every
        self.empty, self.tokens = 0, 0
        self.memory: list[dict[str, int]] = []

    def on_train_start(self) -> None:
        self.file = (self.folder / f"seen-{self.global_rank}.txt").open("w")

    def training_step(self, batch: Batch[EncodedWindow], batch_idx: int) -> torch.Tensor:
        self.file.writelines(f"{encoded.window.qid}\n" for encoded in batch)
        self.tokens += sum(len(encoded.ids) for encoded in batch)
        self.empty += not len(batch)
        if batch_idx % self.every == 0:
            self.memory.append({process: resident(process) for process in ("self", *workers())})
        return self.weight * 0.0

    def on_train_end(self) -> None:
        self.file.close()
        found = {"memory": self.memory, "empty_batches": self.empty, "tokens": self.tokens}
        (self.folder / f"memory-{self.global_rank}.json").write_text(json.dumps(found))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


def workers() -> Iterator[str]:
    """The ids of this process's workers."""
    return (str(process.pid) for process in active_children())


def resident(process: str) -> int:
    """How many bytes of memory a process holds; 0 where it has ended."""
    try:
        pages = Path("/proc", process, "statm").read_text().split()[1]
    except FileNotFoundError:
        return 0
    return int(pages) * 4096


def records(count: int, passages: int) -> Iterator[RankingRecord]:
    """Records that a teacher has ordered, of some hundred bytes a passage."""
    draw = random.Random(0)
    for number in range(count):
        texts = (" ".join(draw.choices(WORDS, k=40)) for _ in range(passages))
        listed = tuple(Passage(f"d{number}-{i}", text) for i, text in enumerate(texts))
        order = tuple(draw.sample(range(1, passages + 1), passages))
        yield RankingRecord(f"q{number}", "how long do fleas live", listed, order)


def check(
    folder: Path, count: int, processes: int = 2, num_workers: int = 2, model: str = MODEL, shard_records: int = 1000
) -> dict[str, Any]:
    """Stream `count` records once.

    Returns:
        How many were used how often, how many megabytes the processes held and grew by at most, tokens.
    """
    if not (folder / "shards").exists():
        write_jsonl(records(count, passages=10), folder / "records.jsonl")
        prepare(str(folder / "records.jsonl"), output=folder / "shards", shard_records=shard_records)
    data = PermutationDataModule(
        train=ShardsSource(folder / "shards"),
        tokenizer=model,
        augmentation=Augmentation(2, 3),
        streaming=True,
        num_workers=num_workers,
        batch_size=8,
    )
    steps = -(-count // (8 * processes))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Seen(folder, max(1, steps // 40)), data)
    found = [json.loads((folder / f"memory-{rank}.json").read_text()) for rank in range(processes)]
    used = Counter(qid for rank in range(processes) for qid in (folder / f"seen-{rank}.txt").read_text().splitlines())
    times = Counter(used.values())
    grown = [growth(rank["memory"]) for rank in found]
    return {
        "records": count,
        "processes": processes,
        "workers_of_each": num_workers,
        "used_once": times[1],
        "used_more_often": sum(times.values()) - times[1],
        "never_used": count - len(used),
        "empty_batches": [rank["empty_batches"] for rank in found],
        "tokens": sum(rank["tokens"] for rank in found),
        "held_mb": round(max(max(look.values()) for rank in found for look in rank["memory"]) / MEGABYTE, 1),
        "grown_mb": round(max(grown) / MEGABYTE, 1),
    }


def growth(memory: list[dict[str, int]]) -> int:
    """The most bytes by which any process exceeds, later, what it held at most when the epoch was young."""
    warm = max(1, round(WARM * len(memory)))
    young, later = memory[: warm + 1], memory[warm + 1 :]
    return max(
        max((look.get(process, 0) for look in later), default=0) - max(look.get(process, 0) for look in young)
        for process in young[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--model", default=MODEL, help="whose tokenizer encodes them")
    parser.add_argument("--metrics", type=Path, default=Path("runs/check-streaming.json"), help="where the figures go")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = check(Path(folder), args.records, model=args.model)
    args.metrics.parent.mkdir(parents=True, exist_ok=True)
    args.metrics.write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name}: {value}")
    if found["used_once"] != args.records or found["grown_mb"] >= LIMIT:
        raise UserError(f"each record is to be used once, and no process may grow by {LIMIT} MB")


if __name__ == "__main__":
    in_one_line(main)
