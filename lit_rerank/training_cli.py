"""LightningCLI for SFT and DPO: one entry point, two configs."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import RankingDataModule
from data_modules.permutation import PermutationDataModule
from data_modules.preference import PreferenceDataModule
from lit_rerank.adapter_checkpoint import AdapterCheckpoint
from lit_rerank.checkpoints import WholeCheckpointIO, refuse_damaged
from lit_rerank.dpo import DPOModule
from lit_rerank.dry_run import dry_run
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import make_way, report
from lit_rerank.json_lines import JsonLinesLogger
from lit_rerank.modules import RerankModule
from lit_rerank.overview import RunOverview
from lit_rerank.predictions import RunWriter
from lit_rerank.progress import progress
from lit_rerank.reranked_text import RerankedText
from lit_rerank.run_record import is_of_training, run_record, write_record
from lit_rerank.sft import SFTModule
from lit_rerank.sigterm import StopOnSigterm
from lit_rerank.throughput import Throughput

_load_yaml = get_loader("yaml")


class SaveTrainingConfig(SaveConfigCallback):
    """Writes `<run>/config.yaml` and `run.json`; evaluating a run that was trained leaves its own alone."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" or not is_of_training(Path(trainer.default_root_dir)):
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """What the run was made of, as a file and in TensorBoard."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_link_targets=False, skip_none=False))
        data = getattr(trainer, "datamodule", None)
        record = run_record(stage, config, data if isinstance(data, RankingDataModule) else None, trainer.world_size)
        write_record(Path(trainer.default_root_dir), record)
        text = json.dumps(record, indent=2)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("run", "".join(f"    {line}\n" for line in text.split("\n")))


class RerankCLI(LightningCLI):
    """Everything of a run lands in `trainer.default_root_dir`; model and data share tokenizer and prompt."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            RerankModule,
            RankingDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveTrainingConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs/default", "log_every_n_steps": 1},
            parser_kwargs={"prog": Path(sys.argv[0]).name},
            **kwargs,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        set_loader("yaml", _load, (yaml.YAMLError,))
        # Errors come without the usage's hundred lines, and an option is what its whole name says.
        return super().init_parser(exit_on_error=False, allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(AdapterCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RerankedText, "reranked_text")
        for model, data in (
            ("backbone.model", "tokenizer"),
            ("backbone.trust_remote_code", "trust_remote_code"),
            ("prompt", "prompt"),
        ):
            parser.link_arguments(f"model.init_args.{model}", f"data.init_args.{data}")
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="load data and model, encode a batch and read it once, say what was found, and end there",
        )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error, UserError) or not str(error).startswith("Does not validate"):
                raise
            raise UserError(str(error)) from error  # jsonargparse has packed what the class said
        for module, data in ((SFTModule, PermutationDataModule), (DPOModule, PreferenceDataModule)):
            if isinstance(self.model, module) and not isinstance(self.datamodule, data):
                name = data.__name__
                raise UserError(f"{module.__name__} learns from {name}: set data.class_path to data_modules.{name}")

    def _run_subcommand(self, subcommand: str) -> None:
        if self._get(self.config_init, "dry_run"):
            path = Path(self.trainer.default_root_dir) / "dry_run.json"
            ckpt_path = self._get(self.config_init, "ckpt_path")
            figures = dry_run(subcommand, self.trainer, self.model, self.datamodule, ckpt_path)
            if self.trainer.is_global_zero:
                make_way(str(path))
                report(figures, str(path))
        else:
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Left to itself, Lightning reads a checkpoint from a URL as a pickle, which may run anything.
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | {"weights_only": kwargs.get("weights_only") is not False}

    def _parse_ckpt_path(self) -> None:
        # Lightning would load it here already, for settings that it might hold; those of a run are in its config.
        path = self.config[self.config.subcommand].get("ckpt_path") if self.config.subcommand else None
        if path is not None:
            refuse_damaged(path)

    def before_fit(self) -> None:
        """A run that does not resume an earlier one replaces its logs."""
        folder = Path(self.trainer.default_root_dir)
        logs = [*folder.glob("metrics.jsonl"), *folder.glob("events.out.tfevents.*")]
        if logs and self._get(self.config_init, "ckpt_path") is None and self.trainer.is_global_zero:
            rank_zero_info(f"{folder} holds the logs of an earlier run: they are replaced")
            for log in logs:
                log.unlink()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        folder = self._get(self.config_init, "trainer.default_root_dir")
        if self._get(self.config_init, "trainer.logger") is None:
            kwargs["logger"] = [TensorBoardLogger(folder, name="", version=""), JsonLinesLogger(folder)]
        own = list(self._get(self.config_init, "trainer.callbacks") or [])  # Lightning adds its own to that list
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            hint = " Here is none: pass --trainer.accelerator cpu" if "backend found" in str(error) else ""
            raise UserError(f"trainer: {error}{hint}") from error
        bar: Any = trainer.progress_bar_callback
        if bar is not None and not any(isinstance(callback, ProgressBar) for callback in own):
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks[callbacks.index(bar)] = progress()
        watchers = [LearningRateMonitor("step")] if trainer.loggers else []
        trainer.callbacks += [Throughput(), RunOverview(), RunWriter(), *watchers, StopOnSigterm()]  # type: ignore[attr-defined]
        if _writes_one_file(trainer.strategy):
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer


def _writes_one_file(strategy: Strategy) -> bool:
    """Whether a checkpoint is one file, which Lightning writes; others write in ways of their own."""
    if type(strategy) is ModelParallelStrategy:
        return not strategy._save_distributed_checkpoint
    return type(strategy) in (SingleDeviceStrategy, DDPStrategy)


def _load(value: str) -> Any:
    """A value of the command line. For what is set within a class within a class, jsonargparse writes null as None."""
    return None if value.strip() == "None" else _load_yaml(value)
