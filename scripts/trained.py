"""The trainings of `make results`: each after those that it starts from, once, and of the data that are there."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_modules.sources.shards import hash_of
from lit_rerank.adapter_files import WEIGHTS
from lit_rerank.errors import UserError
from scripts.measured import run as run_command
from scripts.recipes import configs, go_on, pays_to_compile
from scripts.rows import ROWS, TRAININGS, Mean, Training

MADE_OF = "made_of.json"


def train(name: str, lists: Path, runs: Path) -> None:
    """Run a training after those that it starts from, unless that was done.

    Raises:
        UserError: if it was stopped when it had learned from or replayed other data, or begun with another adapter.
    """
    run = runs / name
    if (run / "complete").exists():
        if what := different(name, runs):
            print(f"{run} was made of {what}: it is kept (to train it anew, remove it)", flush=True)
        return  # whatever became of those that it started from
    for start in TRAININGS[name].starts:
        train(start, lists, runs)
    if what := different(name, runs):
        raise UserError(f"{run} was stopped, and was made of {what}: to train it anew, remove it")
    for row in (row for row in ROWS if ROWS[row].training == name and (runs / "measured" / row).exists()):
        set_aside(runs / "measured" / row)
    run.mkdir(parents=True, exist_ok=True)
    (run / MADE_OF).write_text(json.dumps(made_of(name, runs), indent=2) + "\n")
    match TRAININGS[name]:
        case Mean(of):
            average([runs / part / "adapter" for part in of], run)
        case training:
            go_on(training.recipe, run, *told(name, training, lists, runs))


def set_aside(measured: Path) -> None:
    """What was measured of an earlier adapter makes way for what will be of the new one."""
    earlier = measured.with_name(f"{measured.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    measured.rename(earlier)
    print(f"{measured} is of an earlier adapter: it is {earlier} now", flush=True)


def average(adapters: Sequence[Path], folder: Path) -> None:
    """Make an adapter that is the mean of others."""
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    run_command("average", *map(str, adapters), "--out", f"{folder}/adapter")
    (folder / "complete").touch()


def told(name: str, training: Training, lists: Path, runs: Path) -> list[str]:
    """What a recipe's command is told besides."""
    replay = replayed(name, runs)
    options = [*training.options, f"--data.init_args.train.init_args.path={data_of(name, runs)}"]
    if training.recipe == "trecdl.pointing":
        options.append(f"--data.init_args.val.init_args.path={runs}/data/pointing.val.jsonl.gz")
    else:
        options += ["--trainer.num_sanity_val_steps=0", *processes()]  # sixteen lists, reranked before the first step
        if replay is not None:
            options.append(f"--data.init_args.replay.init_args.path={replay}")
        for part in ("candidates",) if training.recipe == "trecdl.dpo" else ("val", "candidates"):
            options += [
                f"--data.init_args.{part}.init_args.path={lists}/dl21.bm25.top100.jsonl.gz",
                f"--data.init_args.{part}.init_args.qrels={lists}/qrels.dl21.txt",
            ]
    if pays_to_compile():
        options.append("--model.init_args.backbone.compile=true")
    if training.start is not None:
        options.append(f"--model.init_args.backbone.adapter={runs / training.start}/adapter")
    return options


def processes() -> tuple[str, ...]:
    """Without a GPU, a process for each of two cores, which read as much together as the recipe on one device."""
    import torch

    if torch.cuda.is_available():
        return ()
    options = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "data.init_args.batch_size=4")
    return tuple(f"--{option}" for option in options)


def data_of(name: str, runs: Path) -> Path | None:
    """The file that a training learns from; a mean has none."""
    training = TRAININGS[name]
    return None if isinstance(training, Mean) else runs / "data" / f"{training.data}.jsonl.gz"


def replayed(name: str, runs: Path) -> Path | None:
    """The file that a training replays, if it does."""
    training = TRAININGS[name]
    if isinstance(training, Mean) or training.recipe == "trecdl.pointing":
        return None
    if "--data.init_args.replay=null" in training.options:
        return None
    return runs / "data" / "self_taught" / "replay.jsonl.gz"


def made_of(name: str, runs: Path) -> dict[str, str]:
    """Recipe and options; the SHA-256 of the recipe's files, of what is learned from and replayed, and of the adapters
    that it starts from."""
    training = TRAININGS[name]
    files = {"data": data_of(name, runs), "replay": replayed(name, runs)}
    if not isinstance(training, Mean):
        files |= {config.name: config for config in configs(training.recipe)}
    for start in training.starts:
        part = f"weights of {start}" if isinstance(training, Mean) else "weights"
        files[part] = runs / start / "adapter" / WEIGHTS
    recipe, options = ("average", training.of) if isinstance(training, Mean) else (training.recipe, training.options)
    told = {"recipe": recipe, "options": " ".join(options)}
    return told | {what: hash_of(path) for what, path in files.items() if path is not None and path.exists()}


def different(training: str, runs: Path) -> str:
    """What a training that is there was made of, where that is not what it would be made of now; "" where it is, or
    where none is there."""
    if not (runs / training).exists():
        return ""
    path = runs / training / MADE_OF
    if not path.exists():
        return "what is not known"
    now, before = made_of(training, runs), json.loads(path.read_text())
    unlike = [name for name in before | now if now.get(name, before.get(name)) != before.get(name)]
    return " and ".join(f"other {name}" for name in unlike)
