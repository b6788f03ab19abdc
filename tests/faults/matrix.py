"""What is killed: trainings of a tiny model, by the configs that a user would take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.references import save_adapter
from tests.tiny import save_tiny_model
from tests.training import CONFIGS, command, write_data

# Batches of 2 in packed rows, 2 of them a step, two epochs of 5 steps; the last step of each has one batch.
# Every third batch is followed by a validation: amid an epoch, and every other one amid an accumulation.
WINDOWS, STEPS = 18, 10
COMMON = (
    "--trainer.max_epochs=2",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=3",
    "--data.init_args.batch_size=2",
    "--model.init_args.optimizer.lr=0.003",
    "--checkpoint.every_n_train_steps=1",
    "--reranked_text.windows=0",
)
DROPOUT = "--model.init_args.backbone.lora.dropout=0.1"
REPLAY = (f"--config={CONFIGS / 'data' / 'replay.yaml'}", "--data.init_args.replay_share=0.1")  # 2 of 20
ALONE, WORKERS = "--data.init_args.num_workers=0", "--data.init_args.num_workers=2"
# Checkpoints at the epoch's end alone.
BY_STEPS = (f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=1.0", "--checkpoint.every_n_train_steps=5")
NEGATIVES = "--data.init_args.negatives=all"
STREAMED = (f"--config={CONFIGS / 'data' / 'streaming.yaml'}", "--data.init_args.shuffle_buffer=3")


@dataclass(frozen=True)
class Row:
    """A training, and how often it is killed."""

    name: str
    task: str
    backbone: str
    more: tuple[str, ...]
    kills: int
    ranks: int = 1

    def args(self, folder: Path, run: str) -> list[str]:
        data = "permutations" if self.task == "sft" else "preferences"
        start = [] if self.task == "sft" else [f"--model.init_args.backbone.adapter={folder}/start"]
        ranks = [f"--trainer.devices={self.ranks}", "--trainer.strategy=ddp"] if self.ranks > 1 else []
        more = [*COMMON, *self.more, *start, *ranks]
        return command(self.task, self.backbone, data, run, *more, model=folder / "model")


MATRIX = (
    Row("sft-lora", "sft", "lora", (DROPOUT,), 3),
    Row("sft-lora-workers", "sft", "lora", (DROPOUT, WORKERS), 2),
    Row("sft-lora-streamed", "sft", "lora", (DROPOUT, *STREAMED, WORKERS), 2),
    Row("sft-qlora", "sft", "qlora", (DROPOUT,), 2),
    Row("sft-qlora-workers-replay", "sft", "qlora", (DROPOUT, WORKERS, *REPLAY), 3),
    Row("sft-lora-replay", "sft", "lora", (DROPOUT, *REPLAY, "--checkpoint.every_n_train_steps=3"), 2),
    Row("dpo-lora", "dpo", "lora", (NEGATIVES,), 2),
    Row("dpo-qlora-workers-replay", "dpo", "qlora", (WORKERS, *REPLAY), 2),
    Row("sft-full-validated-by-epoch", "sft", "full", ("--trainer.val_check_interval=1.0",), 2),
    Row("sft-lora-streamed-alone", "sft", "lora", (DROPOUT, *STREAMED, ALONE), 2),
    Row("sft-lora-by-steps", "sft", "lora", (DROPOUT, *BY_STEPS), 2),
    Row("sft-lora-streamed-by-steps", "sft", "lora", (DROPOUT, *STREAMED, ALONE, *BY_STEPS), 2),
    Row("sft-qlora-streamed", "sft", "qlora", (DROPOUT, *STREAMED, WORKERS), 1),
    Row("dpo-lora-streamed", "dpo", "lora", (NEGATIVES, *STREAMED, WORKERS), 1),
)
PAIR = Row("sft-lora-two-ranks", "sft", "lora", (WORKERS,), 0, ranks=2)


def prepare(folder: Path) -> Path:
    """The data, the model and the adapter that DPO starts from."""
    write_data(folder, train=WINDOWS, val=3)
    save_tiny_model(folder / "model")
    save_adapter(folder / "model", folder / "start", seed=1)
    return folder


def rows(names: Sequence[str]) -> list[Row]:
    return [row for row in MATRIX if not names or row.name in names]
