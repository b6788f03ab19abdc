"""What is written during a run: adapters beside checkpoints, speed, reranked windows, a run file, figures as JSON."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from data_modules.trec import write_run
from lit_rerank.backbone import is_adapted
from lit_rerank.modules import RerankModule
from lit_rerank.reranker import Ranking, save_prompt_settings


class AdapterCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best `val/nDCG@10`, each with its adapter in PEFT's layout.

    `<run>/checkpoints/<name>.ckpt` resumes training; `<run>/checkpoints/<name>/adapter/` and, for the best,
    `<run>/adapter/` are what inference loads. Full fine-tuning writes whole models, to `.../model/`.
    """

    def __init__(
        self,
        monitor: str = "val/nDCG@10",
        mode: str = "max",
        filename: str = "step={step}",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_train_steps: int | None = None,
        save_on_train_epoch_end: bool | None = None,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=False,
        )

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            module = trainer.lightning_module
            export(module, Path(filepath).with_suffix(""))
            if self.best_model_path in ("", filepath):  # as long as nothing was validated, the latest
                export(module, Path(trainer.default_root_dir))

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            shutil.rmtree(Path(filepath).with_suffix(""), ignore_errors=True)


def export(module: RerankModule[Any], folder: Path) -> Path:
    """Write what was trained as Hugging Face and PEFT load it: `folder/adapter` or, without adapters, `folder/model`."""
    adapted = is_adapted(module.model)
    target = folder / ("adapter" if adapted else "model")
    target.mkdir(parents=True, exist_ok=True)
    if adapted:
        module.model.save_pretrained(target, selected_adapters=["default"])
    else:
        module.model.save_pretrained(target)
        module.encoder.tokenizer.save_pretrained(target)
    save_prompt_settings(module.prompt, target)
    return target


class Throughput(L.Callback):
    """Logs `train/tokens_per_s`: tokens read by the policy, each once, in a second of wall time on this process."""

    def on_train_batch_start(self, trainer: L.Trainer, module: RerankModule[Any], batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self._started, self._tokens = time.perf_counter(), module.tokens_read

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: RerankModule[Any], outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self._started
        module.log("train/tokens_per_s", (module.tokens_read - self._tokens) / seconds)


class RerankedText(L.Callback):
    """Shows the first reranked windows of each validation in TensorBoard: prompt, the model's answer, the teacher's.

    Args:
        windows: how many.
    """

    def __init__(self, windows: int = 2) -> None:
        self.windows = windows

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        module: RerankModule[Any],
        outputs: list[Ranking] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs and batch_idx == 0 and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    for ranking in outputs[: self.windows]:
                        text = reranked_text(module, ranking)
                        logger.experiment.add_text(f"reranked/{ranking.record.qid}", text, trainer.global_step)


def reranked_text(module: RerankModule[Any], ranking: Ranking) -> str:
    """The first window that was read, as Markdown."""
    from data_modules.records import Window

    record = ranking.record
    start, end = module.reranking.sliding.spans(len(record.passages))[0]
    window = Window.of(record, range(start, end))
    if window.permutation is not None:
        teacher = module.encoder.format.render(window.permutation).text
    else:
        grades = [(record.qrels or {}).get(passage.docid, "-") for passage in window.passages]
        teacher = ", ".join(f"[{i}] {grade}" for i, grade in enumerate(grades, start=1))
    parts = {"prompt": module.encoder.prompt(window), "model": ranking.decoded[0].text, "teacher or grades": teacher}
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(f"    {line}" for line in body.split("\n")) for title, body in parts.items())


class RunWriter(BasePredictionWriter):
    """`predict` writes its rankings to `<run>/run.txt`, a TREC run."""

    def __init__(self, tag: str = "lit-rerank") -> None:
        super().__init__(write_interval="epoch")
        self.tag = tag

    def write_on_epoch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: L.LightningModule, predictions: Sequence[Sequence[Ranking]], batch_indices: Any
    ) -> None:
        import torch.distributed as dist

        own = {ranking.record.qid: ranking.run for batch in predictions for ranking in batch}
        parts: list[Any] = [own]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, own)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "run.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_run({qid: run for part in parts for qid, run in part.items()}, path, self.tag)


class JsonLinesLogger(Logger):
    """Every logged figure as one JSON object a line: `<save_dir>/metrics.jsonl`."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.jsonl"

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Kept by the run folder's config.yaml."""
