"""`--dry_run`: is all of a command in order? Data and model are loaded, a batch is encoded and read once."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from data_modules.base import RankingDataModule
from data_modules.records import RankingRecord, Window
from data_modules.stream import Stream
from lit_rerank.adapter_checkpoint import AdapterCheckpoint
from lit_rerank.errors import UserError
from lit_rerank.modules import RerankModule
from lit_rerank.overview import sizes, step_size, warn_of_slowness


def dry_run(
    stage: str, trainer: L.Trainer, module: RerankModule[Any], data: RankingDataModule[Any], ckpt_path: str | None
) -> dict[str, Any]:
    """Do what `stage` (fit, validate, test or predict) begins with, in this process alone, and leave nothing behind.

    Returns:
        Figures: records, what a step is made of, and of the first batch its tokens, its loss and the seconds it took.
    """
    data.trainer = trainer  # it asks how many processes there are
    data.check_content(stage)
    data.setup(stage)
    _check_callbacks(trainer, module, data, stage)
    module.configure_model()
    module.to(trainer.strategy.root_device)
    trainer.precision_plugin.convert_module(module)
    warn_of_slowness(trainer, module)
    _check_checkpoint(stage, trainer, module, data, ckpt_path)
    figures: dict[str, Any] = {f"{name}.records": len(rows) for name, rows in data.records.items()} | sizes(module)
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        if stage == "fit":
            figures |= _step(trainer, module, data)
        loaders = {"fit": data.val_dataloader, "validate": data.val_dataloader}.get(stage, data.test_dataloader)()
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            figures |= _evaluation(module, next(iter(loader)))
    return figures


def _step(trainer: L.Trainer, module: RerankModule[Any], data: RankingDataModule[Any]) -> dict[str, Any]:
    """What training would begin with."""
    loader, step = data.train_dataloader(), step_size(trainer, data)
    dataset = loader.dataset
    batches = _limited(len(loader), trainer.limit_train_batches)
    epochs, most = trainer.max_epochs, trainer.max_steps
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (epochs if epochs and epochs > 0 else math.inf)
    steps = min(steps, most) if most > 0 else steps
    if steps == math.inf:
        raise UserError("set trainer.max_epochs or trainer.max_steps: the learning rate must know how long training is")
    batch = next(iter(loader))
    started = time.perf_counter()
    objective = module.objective(batch)
    seconds = time.perf_counter() - started
    return {
        **step,
        "examples_an_epoch": dataset.examples if isinstance(dataset, Stream) else len(dataset),
        "steps": int(steps),
        "batch.tokens": objective.tokens,
        "batch.longest_example": max((len(example.ids) for example in batch), default=0),
        "batch.loss": float(torch.cat([objective.windows, objective.replay]).mean()) if objective.tokens else None,
        "batch.forward_seconds": round(seconds, 3),
    }


def _evaluation(module: RerankModule[Any], batch: Any) -> dict[str, Any]:
    """Of a batch of validation windows, or of candidate lists, whose first window is written."""
    if not isinstance(batch[0], RankingRecord):
        return {"val.batch.tokens": module.objective(batch).tokens}
    record = batch[0]
    prompt = module.encoder.encode_prompt(Window.of(record, module.reranking.reading.first(record)))
    return {"candidates.prompt_tokens": len(prompt)}


def _check_callbacks(trainer: L.Trainer, module: RerankModule[Any], data: RankingDataModule[Any], stage: str) -> None:
    for callback in trainer.checkpoint_callbacks if stage == "fit" else []:
        if isinstance(callback, AdapterCheckpoint):
            callback.check_monitor(module, data)


def _check_checkpoint(
    stage: str, trainer: L.Trainer, module: RerankModule[Any], data: RankingDataModule[Any], ckpt_path: str | None
) -> None:
    if ckpt_path == "last":
        callback = next(c for c in trainer.checkpoint_callbacks if isinstance(c, AdapterCheckpoint))
        ckpt_path = next(iter(callback._find_last_checkpoints(trainer)), None)
    if ckpt_path is None:
        return
    if not Path(ckpt_path).is_file():
        raise UserError(f"Checkpoint file not found: {ckpt_path}")
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    if stage == "fit":
        data.check_resumed(checkpoint.get(type(data).__qualname__, {}))
        module.check_resumed(checkpoint)


def _limited(batches: int, limit: int | float | None) -> int:
    """So many of an epoch's batches are trained on: a number of them, or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
