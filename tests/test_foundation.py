"""An adapter in training goes on upon what it began upon, and upon nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rerank.backbone import BackboneSettings, load_backbone, load_model
from lit_rerank.foundation import foundation
from tests.tiny import save_tiny_model
from tests.training import command, train_in, write_data

SHORT = ("--data.init_args.batch_size=1", "--trainer.max_steps=1", "--trainer.num_sanity_val_steps=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Data, a model beside the tiny one, and a run on that: sft/."""
    folder = write_data(tmp_path_factory.mktemp("foundation"))
    save_tiny_model(folder / "another", seed=1)
    train_in(folder, command("sft", "lora", "permutations", "sft", *SHORT, model=tiny_model))
    return folder


@pytest.mark.parametrize(
    ("setting", "was", "here"),
    [
        ("lora.alpha=64", r"backbone.lora.alpha / r \[2.0\]", r"backbone.lora.alpha / r \[4.0\]"),
        ("load_in_4bit=true", "backbone.load_in_4bit False", "backbone.load_in_4bit True"),
        ("model={folder}/another", *2 * (r"backbone.model \(float32\) [0-9a-f]{8}",)),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry_run",)], ids=["fit", "dry_run"])
def test_an_adapter_is_not_trained_on_upon_something_else(
    folder: Path, tiny_model: Path, setting: str, was: str, here: str, more: tuple[str, ...]
) -> None:
    args = command("sft", "lora", "permutations", "upon", *SHORT, *more, model=tiny_model)
    changed = f"--model.init_args.backbone.{setting.format(folder=folder)}"
    said = rf"^error: the checkpoint is of a run with {was}, and this one has {here}: [^\n]*$"
    with pytest.raises(SystemExit, match=said):
        train_in(folder, [*args, changed, "--ckpt_path=sft/checkpoints/last.ckpt"])


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_a_checkpoint_is_not_read_upon_another_model(folder: Path, tiny_model: Path, stage: str) -> None:
    args = command("sft", "lora", "permutations", "read", *SHORT, model=folder / "another", stage=stage)
    said = (
        r"^error: the checkpoint is of a run with backbone.model [^\n]*: what was learned [^\n]*. Name what it [^\n]*$"
    )
    with pytest.raises(SystemExit, match=said):
        train_in(folder, [*args, "--ckpt_path=sft/checkpoints/last.ckpt"])


def test_dpo_does_not_go_on_beside_another_reference(folder: Path, tiny_model: Path) -> None:
    args = command("dpo", "lora", "preferences", "beside", *SHORT, model=tiny_model)
    start = "--model.init_args.backbone.adapter="
    train_in(folder, [*args, f"{start}{folder}/sft/adapter"])
    said = (
        "^error: the checkpoint is of a run with the reference's adapter [0-9a-f]{16}, and this one has the reference's"
    )
    with pytest.raises(SystemExit, match=said):
        train_in(folder, [*args, f"{start}{folder}/beside/adapter", "--ckpt_path=beside/checkpoints/last.ckpt"])


def test_a_run_whose_weights_are_converted_goes_on(folder: Path, tiny_model: Path) -> None:
    args = command(
        "sft", "lora", "permutations", "converted", *SHORT, "--trainer.precision=bf16-true", model=tiny_model
    )
    train_in(folder, args)
    checkpoint = torch.load(folder / "converted" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "backbone.model (float32)" in checkpoint["foundation"]  # as it was loaded, so that it is compared
    train_in(folder, [*args, "--trainer.max_steps=2", "--ckpt_path=converted/checkpoints/last.ckpt"])


def test_a_base_model_is_the_same_wherever_it_lies(tiny_model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_model, tmp_path / "copy")
    assert of(copied) == of(tiny_model)


@pytest.mark.parametrize("changed", ["mlp.down_proj", "self_attn.q_proj", "embed_tokens", "norm"])
def test_a_base_model_is_another_if_some_weights_are(tiny_model: Path, tmp_path: Path, changed: str) -> None:
    model = load_model(str(tiny_model))
    for name, weight in model.named_parameters():
        if f"{changed}.weight" in name:
            weight.data += 0.01
    model.save_pretrained(tmp_path)
    assert of(tmp_path) != of(tiny_model)


def test_weights_of_different_dtypes_are_not_compared(tiny_model: Path) -> None:
    shared = of(tiny_model).keys() & of(tiny_model, dtype="float16").keys()
    assert shared == {"backbone.load_in_4bit", "backbone.lora.alpha / r"}


def of(model: Path, **settings: Any) -> dict[str, Any]:
    return foundation(load_backbone(BackboneSettings(str(model), **settings)), load_in_4bit=False)
