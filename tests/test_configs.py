"""Every file under configs/ opens with the command that uses it, and that command trains."""

import shlex
from pathlib import Path

import pytest
import yaml

from tests.training import CONFIGS, figures, train_in, write_data

FILES = sorted(CONFIGS.rglob("*.yaml"))
REPLAY = "configs/data/replay.yaml"
ADDED = {REPLAY, "configs/data/streaming.yaml"}  # to the data of SFT or DPO
ELSEWHERE = ("fsdp", "deepspeed_zero3")  # tests/test_strategies.py, and tests/test_recipes.py runs the recipes
FRAGMENTS = [config for config in FILES if config.parent.name != "recipes" and config.stem not in ELSEWHERE]


def header(config: Path) -> list[str]:
    """The words of a file's first line."""
    return shlex.split(config.read_text().splitlines()[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks like the project's folder, with the data files that configs/data name."""
    folder = write_data(tmp_path_factory.mktemp("project"), train=8)
    (folder / "configs").symlink_to(CONFIGS)
    return folder


@pytest.mark.parametrize("config", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_opens_with_a_command_that_uses_it_and_one_line_of_explanation(config: Path) -> None:
    assert header(config)[:4] == ["#", "python", "train.py", "fit"]
    assert f"configs/{config.relative_to(CONFIGS)}" in header(config)
    assert config.read_text().splitlines()[1].startswith("# ")
    assert yaml.safe_load(config.read_text())


# The commands without an adapter come first: DPO's starts from the adapter that SFT's leaves.
COMMANDS = sorted(
    {tuple(header(config)[3:]) for config in FRAGMENTS}, key=lambda words: "--model.init_args.backbone.adapter" in words
)


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: "+".join(Path(word).stem for word in words if ".yaml" in word)
)
def test_the_command_trains(folder: Path, tiny_model: Path, words: tuple[str, ...]) -> None:
    starts = "--model.init_args.backbone.adapter" in words
    run = "dpo" if starts else "sft" if "configs/backbone/lora.yaml" in words else Path(words[6]).stem
    overrides = [
        f"--model.init_args.backbone.model={tiny_model}",
        f"--trainer.default_root_dir=runs/{run}",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.enable_progress_bar=false",
    ]
    if REPLAY in words:
        overrides.append("--data.init_args.batch_size=5")  # 8 windows and a conversation: 2 steps
    if starts and not (folder / "runs/sft/adapter").is_dir():
        (sft,) = (
            c for c in COMMANDS if {"configs/model/sft.yaml", "configs/backbone/lora.yaml"} < {*c} and not ADDED & {*c}
        )
        train_in(folder, [*sft, *overrides, "--trainer.default_root_dir=runs/sft"])
    train_in(folder, [*words, *overrides])
    steps = figures(folder / "runs" / run)
    assert list(steps) == [1, 2]
    assert all(row["train/loss"] > 0 for row in steps.values())
    assert 0 <= steps[2]["val/nDCG@10"] <= 1
    left = "model" if "configs/backbone/full.yaml" in words else "adapter"
    assert (folder / "runs" / run / left / "lit_rerank.json").is_file()
