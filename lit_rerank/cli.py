"""The two commands: `train` (LightningCLI) and `evaluate`. Heavy imports wait until they are needed."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lit_rerank.errors import UserError


def train(args: Sequence[str] | None = None) -> None:
    """`python train.py fit|validate|test|predict --config ...`; see configs/."""

    def run() -> None:
        from lit_rerank.training_cli import RerankCLI

        RerankCLI(args=list(args) if args is not None else None)

    _in_one_line(run)


def evaluate(args: Sequence[str] | None = None) -> None:
    """`python evaluate.py rerank --model ... --candidates ... --run ... --metrics ...`."""

    def run() -> None:
        from jsonargparse import ArgumentParser

        from lit_rerank.evaluation import rerank_candidates

        parser = ArgumentParser(prog="evaluate.py", description="Everything that reads a trained model and writes numbers.")
        commands = parser.add_subcommands()
        for name, function in {"rerank": rerank_candidates}.items():
            command = ArgumentParser(description=(function.__doc__ or "").split("\n")[0])
            command.add_function_arguments(function, as_group=False)
            commands.add_subcommand(name, command)
        chosen = parser.parse_args(list(args) if args is not None else None)
        rerank_candidates(**vars(chosen[chosen.subcommand]))

    _in_one_line(run)


def _in_one_line(run: Callable[[], Any]) -> None:
    try:
        run()
    except UserError as error:
        sys.exit(f"error: {error}")
