"""Files from elsewhere are data, never code: checkpoints, weights, adapters, tokenizers and their templates."""

import inspect
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rerank import Reranker
from lit_rerank.backbone import BackboneSettings, load_model, load_tokenizer
from lit_rerank.chat import ChatTokenizer
from lit_rerank.errors import UserError
from lit_rerank.evaluation.injection import measure_injection
from lit_rerank.evaluation.merge import merge_adapter
from lit_rerank.evaluation.mmlu import answer_mmlu
from lit_rerank.evaluation.rerank import rerank_candidates
from lit_rerank.evaluation.sweep import sweep_scales
from tests.references import save_adapter
from tests.training import command, train_in, write_data


class Payload:
    """What a pickle runs when it is read without care: it leaves a file."""

    def __init__(self, leaves: Path) -> None:
        self.leaves = leaves

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.leaves)!r}, 'w').close()",)


def poison(file: Path, leaves: Path) -> None:
    """A file as torch.save writes it, with the payload in it."""
    torch.save({"state_dict": {}, "epoch": Payload(leaves)}, file)


def test_the_payload_works(tmp_path: Path) -> None:
    poison(tmp_path / "x.pt", tmp_path / "left")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_is_read_as_weights_alone(stage: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    poison(folder / "bad.ckpt", tmp_path / "left")
    args = command("sft", "lora", "permutations", "run", "--ckpt_path=bad.ckpt", model=tiny_model, stage=stage)
    with pytest.raises(SystemExit) as stopped:
        train_in(folder, args)
    assert "ckpt_path names a file that cannot be read as a checkpoint" in str(stopped.value.code)
    assert not (tmp_path / "left").exists()


def test_weights_of_a_model_and_of_an_adapter_are_no_pickles(tiny_model: Path, tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", save_adapter(tiny_model, tmp_path / "adapter", seed=1)
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    poison(model / "pytorch_model.bin", tmp_path / "left")
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(str(model))
    (adapter / "adapter_model.safetensors").unlink()
    poison(adapter / "adapter_model.bin", tmp_path / "left")
    with pytest.raises(UserError, match="cannot load the adapter"):
        load_model(str(tiny_model), str(adapter))
    assert not (tmp_path / "left").exists()


def test_what_training_writes_needs_no_pickle(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    train_in(folder, command("sft", "lora", "permutations", "run", "--trainer.max_steps=1", model=tiny_model))
    torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    kinds = {file.suffix for file in (folder / "run" / "adapter").iterdir()}
    assert ".safetensors" in kinds
    assert not kinds & {".bin", ".pt", ".pkl", ".ckpt"}


@pytest.mark.parametrize(
    "asked",
    [
        BackboneSettings,
        load_model,
        load_tokenizer,
        Reranker.from_pretrained,
        rerank_candidates,
        answer_mmlu,
        merge_adapter,
        sweep_scales,
        measure_injection,
    ],
)
def test_remote_code_is_off_unless_asked_for(asked: Callable[..., Any]) -> None:
    assert inspect.signature(asked).parameters["trust_remote_code"].default is False


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__ }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_chat_template_is_no_program(template: str, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="the chat template of"):
        ChatTokenizer(tokenizer).render([{"role": "user", "content": "Q"}])


def test_a_pickle_is_no_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    (folder / "bad.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "left")))
    with pytest.raises(SystemExit) as stopped:
        train_in(folder, command("sft", "lora", "permutations", "run", "--ckpt_path=bad.ckpt", model=tiny_model))
    assert "ckpt_path" in str(stopped.value.code)
    assert not (tmp_path / "left").exists()
