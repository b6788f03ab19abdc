"""Trainings by recipes, as these recipes' own commands."""

import json
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.processor import slow_bfloat16

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipes"


def start_anew(runs: Path) -> None:
    """An earlier run's folder is removed."""
    if runs.exists():
        print(f"{runs} holds an earlier run: it is removed", flush=True)
        shutil.rmtree(runs)


def train(recipe: str, runs: Path, *overrides: str, without: str | None = None) -> None:
    """Run the command that configs/recipes/{recipe}.yaml opens with, in folders under `runs`.

    Args:
        overrides: further arguments.
        without: an option of the command that is left out.

    Raises:
        UserError: if it fails.
    """
    words = [*command(recipe, runs, without), *arithmetic(), *overrides]
    print(f"\n== {recipe}: python {shlex.join(words)}\n", flush=True)
    if subprocess.run([sys.executable, *words]).returncode:
        raise UserError(f"the training of {recipe} has failed; its message stands above")


def go_on(recipe: str, run: Path, *overrides: str, without: str | None = None) -> None:
    """`train` into the folder `run`, unless that was done before; one that was stopped continues."""
    complete = run / "complete"  # the adapter is there earlier, with the first validation
    if complete.exists():
        print(f"{run} is complete: it is kept (to train it anew, remove it)", flush=True)
        return
    if any((run / "checkpoints").glob("*.ckpt")):
        overrides += ("--ckpt_path=last",)
    train(recipe, run.parent, f"--trainer.default_root_dir={run}", *overrides, without=without)
    complete.touch()


def command(recipe: str, runs: Path, without: str | None = None) -> list[str]:
    """The words after `python` of the recipe's command; its folder runs/family.stage becomes `runs`/stage."""
    line = (RECIPES / f"{recipe}.yaml").read_text().splitlines()[0].removeprefix("# python ")
    words = shlex.split(line.replace(f"runs/{recipe.partition('.')[0]}.", f"{runs}/"))
    if without is not None:
        option = words.index(without)
        del words[option : option + 2]
    return words


def configs(recipe: str) -> list[Path]:
    """The files that the recipe's command reads."""
    words = command(recipe, Path())
    return [RECIPES.parent.parent / value for option, value in pairwise(words) if option == "--config"]


def dtype() -> DType:
    """What to compute in: bfloat16, as the recipes say, where this machine is fast at it."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if slow_bfloat16(device, "bfloat16") is None else "float32"


def arithmetic() -> tuple[str, ...]:
    """What a recipe is told to compute in the `dtype` of this machine."""
    if dtype() == "bfloat16":
        return ()
    return ("--trainer.precision=32-true", "--model.init_args.backbone.dtype=float32")


def pays_to_compile() -> bool:
    """Where the processor multiplies bfloat16 matrices in tiles, all that is not a product is worth compiling."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and shutil.which("g++") is not None


def windows_seen(run: Path) -> list[tuple[int, int]]:
    """(optimizer step, windows that training had seen after it), on one device without accumulation."""
    batch: int = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["batch_size"]
    return [(step, batch * (step + 1)) for step, _ in curve(run, "train/choice_loss")]


def curve(run: Path, figure: str) -> list[tuple[int, float]]:
    """(optimizer step, value) of a figure that the run has logged; nothing before its first step."""
    if not (run / "metrics.jsonl").exists():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[figure]) for row in rows if figure in row]
