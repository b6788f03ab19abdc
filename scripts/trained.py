"""The trainings of `make results`: each after those that it starts from, once, and of the data that are there."""

import json
import shutil
from pathlib import Path

from data_modules.sources.shards import hash_of
from lit_rerank.errors import UserError
from scripts.recipes import go_on, pays_to_compile
from scripts.rows import ROWS, TRAININGS

MADE_OF = "made_of.json"


def train(name: str, lists: Path, runs: Path) -> None:
    """Run a training after those that it starts from, unless that was done.

    Raises:
        UserError: if it was stopped when it had learned from or replayed other data, or begun with another adapter.
    """
    training, run = TRAININGS[name], runs / name
    if (run / "complete").exists():
        if what := different(name, runs):
            print(f"{run} was made of {what}: it is kept (to train it anew, remove it)", flush=True)
        return  # whatever became of those that it started from
    if training.start is not None:
        train(training.start, lists, runs)
    if what := different(name, runs):
        raise UserError(f"{run} was stopped, and was made of {what}: to train it anew, remove it")
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
    for row in (row for row in ROWS if ROWS[row].training == name and (runs / "measured" / row).exists()):
        print(f"{runs}/measured/{row} is of an earlier adapter: it is removed", flush=True)
        shutil.rmtree(runs / "measured" / row)
    run.mkdir(parents=True, exist_ok=True)
    (run / MADE_OF).write_text(json.dumps(made_of(name, runs), indent=2) + "\n")
    go_on(training.recipe, run, *options)


def processes() -> tuple[str, ...]:
    """Without a GPU, a process for each of two cores, which read as much together as the recipe on one device."""
    import torch

    if torch.cuda.is_available():
        return ()
    options = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "data.init_args.batch_size=4")
    return tuple(f"--{option}" for option in options)


def data_of(training: str, runs: Path) -> Path:
    """The file that a training learns from."""
    return runs / "data" / f"{TRAININGS[training].data}.jsonl.gz"


def replayed(training: str, runs: Path) -> Path | None:
    """The file that a training replays, if it does."""
    recipe, options = TRAININGS[training].recipe, TRAININGS[training].options
    if recipe == "trecdl.pointing" or "--data.init_args.replay=null" in options:
        return None
    return runs / "data" / "self_taught" / "replay.jsonl.gz"


def made_of(training: str, runs: Path) -> dict[str, str]:
    """Recipe and options; the SHA-256 of what is learned from and replayed, and of the adapter that it starts from."""
    start, replay = TRAININGS[training].start, replayed(training, runs)
    files = {"data": data_of(training, runs)}
    if replay is not None:
        files["replay"] = replay
    if start is not None:
        files["weights"] = runs / start / "adapter" / "adapter_model.safetensors"
    recipe = {"recipe": TRAININGS[training].recipe, "options": " ".join(TRAININGS[training].options)}
    return recipe | {name: hash_of(path) for name, path in files.items() if path.exists()}


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
