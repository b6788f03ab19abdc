"""Reference values on disk: they come back bit for bit, or what has changed is named."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_rerank.backbone import BackboneSettings, load_backbone
from lit_rerank.errors import UserError
from lit_rerank.reference import FrozenAdapter, Precomputed, Reference, SeparateModel
from lit_rerank.targets import PreferenceTargets
from tests.references import preferences, randomise, save_adapter, start


def precomputed(path: Path, settings: BackboneSettings, of: Reference | None = None) -> Precomputed:
    reference = Precomputed(str(path), of)
    reference.attach(load_backbone(settings), settings)
    return reference


def make_values(path: Path, settings: BackboneSettings, targets: PreferenceTargets) -> Tensor:
    reference = precomputed(path, settings, SeparateModel())
    values = reference.token_logps(targets.packed)
    reference.save()
    return values


def test_stored_values_come_back_bit_for_bit(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    settings = start("sft", tiny_model, sft)
    values = make_values(tmp_path / "values", settings, targets)
    assert torch.equal(precomputed(tmp_path / "values", settings).token_logps(targets.packed), values)
    assert [file.suffix for file in (tmp_path / "values").iterdir()] == [".safetensors"]


def test_two_runs_append(tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path) -> None:
    settings, more = start("sft", tiny_model, sft), preferences("q1", "another query")
    first = make_values(tmp_path, settings, targets)
    reference = precomputed(tmp_path, settings, SeparateModel())
    second = reference.token_logps(more.packed)
    assert torch.equal(reference.token_logps(targets.packed), first)
    reference.save()
    reference.save()  # nothing is new
    parts = [load_file(part)["keys"].tolist() for part in tmp_path.iterdir()]
    assert len(parts) == 2
    assert not set.intersection(*map(set, parts))  # only what is new is written
    both = precomputed(tmp_path, settings)
    assert torch.equal(both.token_logps(targets.packed), first)
    assert torch.equal(both.token_logps(more.packed), second)


def test_a_save_that_fails_leaves_no_values(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left on device")

    settings = start("sft", tiny_model, sft)
    reference = precomputed(tmp_path, settings, SeparateModel())
    values = reference.token_logps(targets.packed)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", interrupted)
        with pytest.raises(OSError, match="no space"):
            reference.save()
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(UserError, match="lack some"):
        precomputed(tmp_path, settings).token_logps(targets.packed)
    reference.save()
    assert torch.equal(precomputed(tmp_path, settings).token_logps(targets.packed), values)


def test_other_data_is_not_found(tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path) -> None:
    settings = start("sft", tiny_model, sft)
    make_values(tmp_path, settings, targets)
    with pytest.raises(UserError, match=r"lack some of this batch's: .*; set reference.of to add them") as error:
        precomputed(tmp_path, settings).token_logps(preferences("another query").packed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["adapter", "model", "no adapter", "quantisation", "dtype"])
def test_values_of_another_start_are_stale(
    what: str, tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(tiny_model, model)
    shutil.copytree(sft, adapter)
    settings = start("sft", model, adapter)
    make_values(tmp_path / "values", settings, targets)
    precomputed(tmp_path / "values", settings)
    if what == "adapter":  # SFT ran again, into the same directory
        shutil.rmtree(adapter)
        save_adapter(tiny_model, adapter, seed=5)
    elif what == "model":
        tuned = AutoModelForCausalLM.from_pretrained(model)
        randomise(tuned, seed=5)
        tuned.save_pretrained(model)
    elif what == "no adapter":
        settings = start("fresh", model, adapter)
    elif what == "dtype":
        settings = start("sft", model, adapter, dtype="bfloat16")
    else:
        settings = start("sft", model, adapter, load_in_4bit=True)
    match = f"stale: they were made with another {what.removeprefix('no ')}; delete them"
    for of in (None, SeparateModel()):
        with pytest.raises(UserError, match=match) as error:
            precomputed(tmp_path / "values", settings, of)
        assert "\n" not in str(error.value)


def test_values_of_another_reference_are_stale(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    settings = start("sft", tiny_model, sft)
    other = str(save_adapter(tiny_model, tmp_path / "other", seed=5))
    first = precomputed(tmp_path / "values", settings, FrozenAdapter(other))
    first.token_logps(targets.packed)
    first.save()
    precomputed(tmp_path / "values", settings, SeparateModel(adapter=other))
    for of in (None, FrozenAdapter(), SeparateModel()):
        with pytest.raises(UserError, match="made with another adapter"):
            precomputed(tmp_path / "values", settings, of)


def test_moved_directories_are_the_same_start(
    tiny_model: Path, sft: Path, targets: PreferenceTargets, tmp_path: Path
) -> None:
    values = make_values(tmp_path / "values", start("sft", tiny_model, sft), targets)
    moved = start("sft", shutil.copytree(tiny_model, tmp_path / "m"), shutil.copytree(sft, tmp_path / "a"))
    assert torch.equal(precomputed(tmp_path / "values", moved).token_logps(targets.packed), values)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_foreign_files_are_named(content: bytes, tiny_model: Path, sft: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"broken.safetensors holds no precomputed reference values"):
        precomputed(tmp_path, start("sft", tiny_model, sft))


def test_other_tensors_are_named(tiny_model: Path, sft: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors holds no precomputed reference values"):
        precomputed(tmp_path, start("sft", tiny_model, sft))
