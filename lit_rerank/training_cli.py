"""LightningCLI for SFT and DPO: one entry point, two configs."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from data_modules.base import RankingDataModule
from lit_rerank.callbacks import AdapterCheckpoint, JsonLinesLogger, RerankedText, RunWriter, Throughput
from lit_rerank.modules import RerankModule


class RerankCLI(LightningCLI):
    """Everything of a run lands in `trainer.default_root_dir`; model and data share tokenizer and prompt."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            RerankModule,
            RankingDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs/default", "log_every_n_steps": 1},
            parser_kwargs={"prog": "train.py"},
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(AdapterCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RerankedText, "reranked_text")
        for model, data in (
            ("backbone.model", "tokenizer"),
            ("backbone.trust_remote_code", "trust_remote_code"),
            ("prompt", "prompt"),
        ):
            parser.link_arguments(f"model.init_args.{model}", f"data.init_args.{data}")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        folder = self._get(self.config_init, "trainer.default_root_dir")
        if self._get(self.config_init, "trainer.logger") is None:
            kwargs["logger"] = [TensorBoardLogger(folder, name="", version=""), JsonLinesLogger(folder)]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks += [LearningRateMonitor("step"), Throughput(), RunWriter()]
        return trainer
