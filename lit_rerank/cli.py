"""The two commands: `train` (LightningCLI) and `evaluate`. Heavy imports wait until they are needed."""

import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_rerank.errors import UserError

# What libraries tell their developers, or advertise: nothing that a user of this project could act upon.
NOISE = (
    "is deprecated and will be removed in v6. Use",  # Transformers, to itself and to PEFT
    "`isinstance(treespec, LeafSpec)` is deprecated",
    "'set_vital' is deprecated",
    "is not supported by the model summary",
    "You have overridden `transfer_batch_to_device`",
    "The ``compute`` method of metric TrecMetrics was called before",
    "does not have many workers",
    "It is recommended to use `self.log(",  # what is logged has been gathered from all processes
    "LightningCLI's args parameter",
    "Failed to load CPU gemm_4bit_forward",
    "Tip: For seamless cloud",
    "Loading `train_dataloader` to estimate number of stepping batches",
)
TYPES_TRIED = re.compile(
    r"[-\s]*(Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value)"
)
NOISY_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops")


def train(args: Sequence[str] | None = None) -> None:
    """`python train.py fit|validate|test|predict --config ...`; see configs/."""

    def run() -> None:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from lit_rerank.training_cli import RerankCLI

        try:
            RerankCLI(args=list(args) if args is not None else None)
        except (MisconfigurationException, FileNotFoundError) as error:
            raise UserError(str(error)) from error

    _in_one_line(run)


def evaluate(args: Sequence[str] | None = None) -> None:
    """`python evaluate.py rerank|mmlu --model ... --metrics ...`; see README.md."""

    def run() -> None:
        from jsonargparse import ArgumentParser

        from lit_rerank.evaluation import answer_mmlu, rerank_candidates

        parser = ArgumentParser(
            prog=Path(sys.argv[0]).name,
            description="Everything that reads a trained model and writes numbers.",
            exit_on_error=False,
        )
        functions: dict[str, Callable[..., Any]] = {"rerank": rerank_candidates, "mmlu": answer_mmlu}
        commands = parser.add_subcommands()
        for name, function in functions.items():
            command = ArgumentParser(description=(function.__doc__ or "").split("\n")[0], exit_on_error=False)
            command.add_function_arguments(function, as_group=False)
            commands.add_subcommand(name, command)
        chosen = parser.parse_args(list(args) if args is not None else None)
        functions[chosen.subcommand](**vars(chosen[chosen.subcommand]))

    _in_one_line(run)


def _in_one_line(run: Callable[[], Any]) -> None:
    """Run a command: without noise, and what the user can mend without a traceback."""
    for message in NOISE:
        warnings.filterwarnings("ignore", f"(?s).*{re.escape(message)}")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_not_noise)
    try:
        run()
    except (UserError, ArgumentError) as error:
        sys.exit(f"error: {_message(error)}")


def _not_noise(record: logging.LogRecord) -> bool:
    return not any(message in record.getMessage() for message in NOISE)


def _message(error: Exception) -> str:
    """What the user needs to know of an error, as one line."""
    # One from a data loader's process brings its traceback, the message last.
    message = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
    # jsonargparse reports all the types that a setting could have had, one below the other.
    return " ".join(line.strip().removeprefix("- ") for line in message.splitlines() if not TYPES_TRIED.match(line))
