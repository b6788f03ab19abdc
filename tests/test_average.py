"""evaluate.py average: adapters that went on from the same one are made one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_rerank.adapter_files import CONFIG, WEIGHTS
from lit_rerank.as_trained import load_prompt_settings, load_reading, save_settings
from lit_rerank.cli import evaluate
from lit_rerank.encoding import PromptSettings
from lit_rerank.evaluation.average import ALIKE, cosine
from lit_rerank.reading import SlidingWindow
from lit_rerank.reranker import Reranker
from tests.references import save_adapter

SETTINGS = PromptSettings(max_passage_tokens=20)


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Three adapters that went on from the same one."""
    folders = [save_adapter(tiny_model, tmp_path / name, seed=1) for name in "abc"]
    for number, folder in enumerate(folders):
        draw = torch.Generator().manual_seed(number)
        weights = load_file(folder / WEIGHTS)
        moved = {
            name: w + 0.3 * w.std() * torch.randn(w.shape, generator=draw, dtype=w.dtype) for name, w in weights.items()
        }
        save_file(moved, folder / WEIGHTS, metadata={"format": "pt"})
        save_settings(SETTINGS, SlidingWindow(4 + number, 2), folder)
    return folders


def average(out: Path, *adapters: Path) -> Path:
    evaluate(["average", *map(str, adapters), "--out", str(out)])
    return out


def test_each_weight_is_the_mean_of_all(trained: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    out = average(tmp_path / "new" / "mean", *trained)
    found, parts = load_file(out / WEIGHTS), [load_file(folder / WEIGHTS) for folder in trained]
    for name, weight in found.items():
        torch.testing.assert_close(weight, torch.stack([part[name] for part in parts]).mean(0))
        assert not torch.equal(weight, parts[0][name])
    assert found.keys() == parts[0].keys()
    assert load_prompt_settings(out) == SETTINGS
    assert load_reading(out) == SlidingWindow(4, 2)
    assert len(Reranker.from_pretrained(str(tiny_model), str(out)).rank("fleas", ["one", "two"])) == 2


def test_the_order_of_the_adapters_does_not_matter(trained: list[Path], tmp_path: Path) -> None:
    one = load_file(average(tmp_path / "one", *trained) / WEIGHTS)
    other = load_file(average(tmp_path / "other", *reversed(trained)) / WEIGHTS)
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name])


def test_an_adapter_with_itself_is_itself_in_its_own_precision(trained: list[Path], tmp_path: Path) -> None:
    halved = {name: weight.bfloat16() for name, weight in load_file(trained[0] / WEIGHTS).items()}
    save_file(halved, trained[0] / WEIGHTS)
    found = load_file(average(tmp_path / "mean", trained[0], trained[0]) / WEIGHTS)
    assert all(torch.equal(weight, halved[name]) for name, weight in found.items())
    assert cosine(halved, halved) == pytest.approx(1)


def test_what_cannot_be_averaged_is_said_in_one_line(trained: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    one, other, third = trained

    def refused(message: str, *adapters: Path, out: str = "mean") -> None:
        with pytest.raises(SystemExit, match=message) as stop:
            average(tmp_path / out, *adapters)
        assert "\n" not in str(stop.value)
        assert not (tmp_path / "mean").exists()

    refused("there is nothing to average: name two or more adapters", one)
    refused("nowhere holds no adapter: adapter_config.json cannot be read", one, tmp_path / "nowhere")
    refused("a holds something already: name a new directory", one, other, out="a")
    unrelated = save_adapter(tiny_model, tmp_path / "unrelated", seed=2)
    save_settings(SETTINGS, SlidingWindow(), unrelated)
    refused(r"have too little in common \(cosine -?0\.\d+\); have both gone on", one, unrelated)
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps(config | {"lora_alpha": 1, "inference_mode": False}))
    refused("a and .*b cannot be averaged: they differ in lora_alpha$", one, other)
    (other / CONFIG).write_text(json.dumps(config | {"peft_type": "IA3"}))
    refused("b is of the kind IA3; only LoRA adapters can be averaged", one, other)
    (other / CONFIG).write_text("[" * 100_000)
    refused("b holds no adapter: adapter_config.json cannot be read", one, other)
    (other / CONFIG).write_text(json.dumps(config))
    save_settings(PromptSettings("direct", max_passage_tokens=20), SlidingWindow(), other)
    refused("they differ in how prompts are written", one, other)
    weights = load_file(third / WEIGHTS)
    save_file(dict(list(weights.items())[1:]), third / WEIGHTS)
    refused("their weights have other names or shapes", one, third)
    (third / WEIGHTS).write_bytes(b"x" * 100)
    refused("c holds no adapter: adapter_model.safetensors cannot be read", one, third)


def test_the_order_in_which_a_set_was_written_does_not_matter(trained: list[Path], tmp_path: Path) -> None:
    config = json.loads((trained[1] / CONFIG).read_text())
    assert len(config["target_modules"]) > 1
    (trained[1] / CONFIG).write_text(json.dumps(config | {"target_modules": config["target_modules"][::-1]}))
    assert (average(tmp_path / "mean", *trained[:2]) / CONFIG).exists()


def test_only_what_is_low_in_rank_tells_whether_adapters_are_related(trained: list[Path], tmp_path: Path) -> None:
    one, other = load_file(trained[0] / WEIGHTS), load_file(trained[1] / WEIGHTS)
    magnitudes = {"lora_magnitude_vector": torch.full((1000,), 9.0)}  # as of DoRA: those of the base, more or less
    torch.manual_seed(0)
    unrelated = {name: torch.randn_like(weight) for name, weight in other.items()}
    assert cosine(one | magnitudes, unrelated | magnitudes) < ALIKE
    assert cosine(one | magnitudes, other | magnitudes) > ALIKE
