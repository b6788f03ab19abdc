"""The two commands: `train` (LightningCLI) and `evaluate`. Heavy imports wait until they are needed."""

import errno
import logging
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lit_rerank.errors import UserError, out_of_memory
from lit_rerank.help_cache import with_cached_help

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
    r"[-\s]*(Does not validate against|Subtypes:|Errors:|Expected a (<class 'NoneType'>|<class '\w+'>\s*$|path but)"
    r"|Given value)"
)
# What to do without memory, where nothing more is known.
LESS = "Take a smaller batch_size or max_batch_tokens, shorter passages, smaller windows, load_in_4bit, or bfloat16"
GO_ON = "To go on from the last checkpoint, add --ckpt_path last"
_CONFIG = re.compile(r"(-c|--config|--data|--model|--trainer)(=|$)").match
_with_place = warnings.formatwarning
NOISY_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops")


def train(args: Sequence[str] | None = None) -> None:
    """`python train.py fit|validate|test|predict --config ...`; see configs/.

    Completion by the tab key: `eval "$(lit-rerank-train --print_completion shtab-bash)"`, or shtab-zsh.
    """

    def run() -> None:
        from jsonargparse import set_parsing_settings
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from lit_rerank.sigterm import EXIT_CODE
        from lit_rerank.training_cli import RerankCLI

        set_parsing_settings(add_print_completion_argument=True)
        try:
            RerankCLI(args=list(args) if args is not None else None)
        except MisconfigurationException as error:
            raise UserError(str(error)) from error
        except UnpicklingError as error:
            raise UserError("ckpt_path names a file that cannot be read as a checkpoint of a training run") from error
        except SIGTERMException:
            sys.exit(EXIT_CODE)

    words = list(sys.argv[1:] if args is None else args)

    def checked() -> None:
        _check_configs(words)
        with_cached_help(words, run)

    in_one_line(checked)


def evaluate(args: Sequence[str] | None = None) -> None:
    """`python evaluate.py COMMAND ...`: what reads a trained model, or what one wrote, and writes numbers.

    Completion by the tab key: `eval "$(lit-rerank-eval --print_completion shtab-bash)"`, or shtab-zsh.
    """

    def run() -> None:
        from jsonargparse import ArgumentParser, set_parsing_settings

        from lit_rerank.evaluation.average import average_adapters
        from lit_rerank.evaluation.compare import compare_runs
        from lit_rerank.evaluation.fuse import fuse_runs
        from lit_rerank.evaluation.index import index_collection
        from lit_rerank.evaluation.injection import measure_injection
        from lit_rerank.evaluation.merge import merge_adapter
        from lit_rerank.evaluation.mmlu import answer_mmlu
        from lit_rerank.evaluation.rerank import rerank_candidates
        from lit_rerank.evaluation.sweep import SCALES, sweep_scales

        set_parsing_settings(add_print_completion_argument=True)
        parser = ArgumentParser(
            prog=Path(sys.argv[0]).name,
            description="Everything that reads a trained model, or what one wrote, and writes numbers.",
            exit_on_error=False,
            allow_abbrev=False,
        )
        functions: dict[str, Callable[..., Any]] = {
            "rerank": rerank_candidates,
            "mmlu": answer_mmlu,
            "merge": merge_adapter,
            "average": average_adapters,
            "sweep": sweep_scales,
            "compare": compare_runs,
            "fuse": fuse_runs,
            "injection": measure_injection,
            "index": index_collection,
        }
        commands = parser.add_subcommands()
        for name, function in functions.items():
            command = ArgumentParser(
                description=(function.__doc__ or "").split("\n")[0], exit_on_error=False, allow_abbrev=False
            )
            for word, meaning in _variadic(function).items():
                command.add_argument(word, nargs="+", type=str, help=meaning)
            # A list that is an ordinary option would have to be written as JSON.
            command.add_function_arguments(function, as_group=False, skip={"scales"})
            if name == "sweep":
                scales = "strengths of the adapter: 0 is the base model, 1 the adapter as trained"
                command.add_argument("--scales", nargs="+", type=float, default=list(SCALES), help=scales)
            commands.add_subcommand(name, command)
        chosen = parser.parse_args(list(args) if args is not None else None)
        function, options = functions[chosen.subcommand], vars(chosen[chosen.subcommand])
        words = [word for name in _variadic(function) for word in options.pop(name)]
        function(*words, **options)

    in_one_line(run)


def _variadic(function: Callable[..., Any]) -> dict[str, str]:
    """The parameter like `*files` of a command, if it has one, and what its docstring says of it."""
    from docstring_parser import parse

    meanings = {param.arg_name: param.description or "" for param in parse(function.__doc__ or "").params}
    parameters = signature(function).parameters.values()
    return {p.name: meanings.get(p.name, "") for p in parameters if p.kind is Parameter.VAR_POSITIONAL}


def _check_configs(words: Sequence[str]) -> None:
    """Refuse config files that hold no settings; those that are absent are jsonargparse's to name."""
    from lit_rerank.config_files import check_config, is_file

    pairs = zip_longest(words, words[1:], fillvalue="")
    files = [word.partition("=")[2] if "=" in word else value for word, value in pairs if _CONFIG(word)]
    for file in map(Path, files):
        if is_file(file):
            check_config(file)


def installed_packages_first() -> None:
    """Let installed packages win over what lies beside train.py and evaluate.py.

    Python puts a script's own folder first on its path, where evaluate.py would hide the package `evaluate` from
    every library that imports it. This project's packages are already found, and stay those of the checkout.
    """
    import data_modules

    checkout = Path(data_modules.__path__[0]).parent
    sys.path.sort(key=lambda folder: Path(folder) == checkout)


def in_one_line(run: Callable[[], Any]) -> None:
    """Run a command: without noise, and what the user can mend without a traceback."""
    for message in NOISE:
        warnings.filterwarnings("ignore", f"(?s).*{re.escape(message)}")
    warnings.formatwarning = _formatted
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_not_noise)
    try:
        run()
    except (UserError, ArgumentError) as error:
        sys.exit(f"error: {_message(error)}")
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell has it; the user knows why
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, RuntimeError, MemoryError) as error:
        said = _failure(error)
        if said is None:
            raise
        sys.exit(f"error: {said}")


def _formatted(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """A warning that is meant for users, in one line; of others, the place in the code counts, too."""
    return f"warning: {message}\n" if category is UserWarning else _with_place(message, category, *place, **line)


def _failure(error: Exception) -> str | None:
    """What to say of a failure of the system; None where it is no user's business."""
    if out_of_memory(error):
        return f"out of memory: {_first_line(error)} {' '.join(getattr(error, '__notes__', [LESS]))}"
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{error.filename or 'writing'}: {error.strerror}"
        if error.filename is not None:  # a file that the user has named
            return f"{error.filename}: {error.strerror}"
        return _message(error) if isinstance(error, FileNotFoundError) else None
    if str(error).startswith("DataLoader worker"):
        return f"{_first_line(error)} Where memory is short, lower data.num_workers. {GO_ON}"
    if _process_has_died(error):
        said = f"what it said stands above or in its log ({_first_line(error)})"
        return f"another process of this training has ended or cannot be reached; {said} {GO_ON}"
    return None


def _process_has_died(error: Exception) -> bool:
    """NCCL's errors have a type of their own; Gloo's only name its files."""
    return type(error).__name__.startswith("Dist") or "gloo" in str(error) or "Connection closed by peer" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".") + "."


def _not_noise(record: logging.LogRecord) -> bool:
    return not any(message in record.getMessage() for message in NOISE)


def _message(error: Exception) -> str:
    """What the user needs to know of an error, as one line."""
    # One from a data loader's process brings its traceback, the message last.
    message = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
    # jsonargparse reports all the types that a setting could have had, one below the other.
    return " ".join(line.strip().removeprefix("- ") for line in message.splitlines() if not TYPES_TRIED.match(line))
