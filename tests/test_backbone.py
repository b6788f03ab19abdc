"""Loading models and adapters, what is trained of them, 4-bit gradients, and what is said of anything broken."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_rerank.backbone import (
    BackboneSettings,
    LoraSettings,
    context_length,
    load_backbone,
    load_model,
    load_tokenizer,
    trainable_parameters,
)
from lit_rerank.errors import UserError
from tests.test_scoring import assert_same_gradients, gradients

RANK = 4
LORA = LoraSettings(r=RANK, alpha=8)
IDS = torch.arange(4, 84).reshape(2, 40)


def settings(model: Path, **options: Any) -> BackboneSettings:
    return BackboneSettings(str(model), lora=LORA, **options)


def loss_of(model: torch.nn.Module) -> Tensor:
    return model(IDS, labels=IDS, use_cache=False).loss


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the model says."""
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


def save_adapter(model: Path, directory: Path) -> Path:
    adapted = load_backbone(settings(model))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(adapted).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    adapted.save_pretrained(directory)
    return directory


# -- what is trained ------------------------------------------------------------------------------------------------


def lora_size(config: LlamaConfig) -> int:
    """Parameters of an adapter on every linear layer but the head: rank * (inputs + outputs) each."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = hidden * config.num_key_value_heads // config.num_attention_heads
    attention = 2 * (hidden + hidden) + 2 * (hidden + keys)
    return RANK * layers * (attention + 3 * (hidden + inner))


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("from_adapter", [False, True])
def test_lora_trains_the_adapter_alone(four_bits: bool, from_adapter: bool, tiny_model: Path, adapter: Path) -> None:
    start = str(adapter) if from_adapter else None
    model = load_backbone(settings(tiny_model, adapter=start, load_in_4bit=four_bits))
    trained = trainable_parameters(model)
    assert sum(p.numel() for p in trained.values()) == lora_size(model.config)
    assert all("lora_" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert model.training


def test_full_trains_everything(tiny_model: Path) -> None:
    model = load_backbone(settings(tiny_model, tune="full"))
    assert len(trainable_parameters(model)) == len(list(model.parameters())) > 0
    assert model.training


@pytest.mark.parametrize("with_adapter", [False, True])
def test_frozen_unless_trainable(with_adapter: bool, tiny_model: Path, adapter: Path) -> None:
    assert not trainable_parameters(load_model(str(tiny_model), str(adapter) if with_adapter else None))


def test_a_new_adapter_changes_nothing_and_a_stored_one_is_loaded(tiny_model: Path, adapter: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(load_backbone(settings(tiny_model))(IDS).logits, plain(IDS).logits)
    expected = PeftModel.from_pretrained(plain, adapter)(IDS).logits
    torch.testing.assert_close(load_backbone(settings(tiny_model, adapter=str(adapter)))(IDS).logits, expected)


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_dtype(name: Any, dtype: torch.dtype, tiny_model: Path) -> None:
    assert load_model(str(tiny_model), dtype=name).dtype == dtype


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(tune: Any, tiny_model: Path, adapter: Path) -> None:
    start = str(adapter) if tune == "lora" else None

    def found(checkpointing: bool) -> dict[str, Tensor]:
        model = load_backbone(settings(tiny_model, tune=tune, adapter=start, gradient_checkpointing=checkpointing))
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == checkpointing
        return gradients(model, loss_of(model))

    assert_same_gradients(found(False), found(True))


# -- 4 bits ---------------------------------------------------------------------------------------------------------


def linear4bit(model: torch.nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}


@pytest.fixture
def quantised(tiny_model: Path, adapter: Path) -> PreTrainedModel:
    return load_backbone(settings(tiny_model, adapter=str(adapter), load_in_4bit=True, dtype="float32"))


@pytest.fixture
def twin(quantised: PreTrainedModel, tiny_model: Path, adapter: Path) -> PreTrainedModel:
    """The quantised model with what its weights stand for in ordinary linear layers."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    for name, layer in linear4bit(quantised).items():
        weights = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        model.get_submodule(name).weight.data.copy_(weights)
    return model


def validate(model: Any) -> None:
    """What a validation does to a model."""
    model.eval()
    with torch.no_grad():
        model(IDS)
        model.generate(input_ids=IDS[:1], max_new_tokens=3, do_sample=False)
    model.train()


def test_4bit_is_nf4_with_double_quantisation(quantised: PreTrainedModel) -> None:
    layers = linear4bit(quantised)
    assert len(layers) == 2 * 7
    for layer in layers.values():
        state = layer.weight.quant_state
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == layer.in_features * layer.out_features // 2
        assert (state.quant_type, state.nested) == ("nf4", True)
        assert not layer.weight.requires_grad


@pytest.mark.parametrize("validated", [False, True])
def test_4bit_gradients_are_right(validated: bool, quantised: PreTrainedModel, twin: PreTrainedModel) -> None:
    if validated:
        validate(quantised)
    torch.testing.assert_close(quantised(IDS).logits, twin(IDS).logits, atol=1e-4, rtol=1e-4)
    assert_same_gradients(gradients(twin, loss_of(twin)), gradients(quantised, loss_of(quantised)), rtol=1e-3)


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks its weights only where there is AVX512-bf16")
def test_4bit_gradients_would_be_wrong_after_validation(quantised: PreTrainedModel, twin: PreTrainedModel) -> None:
    """The trap that backbone._keep_gradients_exact avoids. When this fails, bitsandbytes has mended it."""
    for layer in linear4bit(quantised).values():
        layer.support_avx512bf16_for_cpu = True
    assert cosine(quantised, twin) > 0.999
    validate(quantised)
    assert cosine(quantised, twin) < 0.9


def cosine(left: PreTrainedModel, right: PreTrainedModel) -> float:
    """Of all their gradients."""
    flat = [
        torch.cat([g.flatten() for _, g in sorted(gradients(model, loss_of(model)).items())]) for model in (left, right)
    ]
    return float(torch.cosine_similarity(*flat, dim=0))


# -- what users get wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"load_in_4bit": True}, {"adapter": "somewhere"}])
def test_full_fine_tuning_has_no_adapter(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"backbone.{next(iter(wrong))} .* set backbone.tune to lora"):
        BackboneSettings("model", tune="full", **wrong)


def test_remote_code_is_off_unless_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    assert BackboneSettings("model").trust_remote_code is False
    folder = changed(
        tiny_model, tmp_path, edit_json("config.json", model_type="mine", auto_map={"AutoConfig": "x.Mine"})
    )
    (folder / "x.py").write_text("raise SystemExit('this must not run')")
    for load in (load_model, context_length):
        with pytest.raises(UserError, match="custom code"):
            load(str(folder))
    load_tokenizer(str(folder))


Change = Callable[[Path], Any]


def changed(source: Path, tmp_path: Path, change: Change) -> Path:
    """A copy of a directory with something changed."""
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    change(folder)
    return folder


def edit_json(name: str, **values: Any) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def truncate(name: str, size: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def one_line(load: Callable[[], Any], match: str, *names: Path | str) -> None:
    """`load` raises a UserError of one line, not too long, that says `match` and names what is meant."""
    with pytest.raises(UserError, match=match) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 800
    assert all(str(name) in message for name in names)


@pytest.mark.parametrize("name", ["", ".", "./none", "/none/at/all", "~/none", "a/b/c", "none", "no spaces/here"])
@pytest.mark.parametrize("load", [load_tokenizer, load_model, context_length])
def test_no_such_directory(load: Callable[[str], Any], name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    match = "cannot load" if name == "." else r"there is no (tokenizer|model) directory .* owner/name"
    one_line(lambda: load(name), match, repr(name))


@pytest.mark.parametrize("what", ["tokenizer", "model", "adapter"])
def test_the_hub_cannot_be_reached(what: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load = {
        "tokenizer": lambda: load_tokenizer("nobody/nothing"),
        "model": lambda: load_model("nobody/nothing"),
        "adapter": lambda: load_model(str(tiny_model), "nobody/nothing"),
    }[what]
    one_line(load, f"cannot load the {what} 'nobody/nothing': there is no such directory, and from Hugging Face: ")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (write("config.json", "{nope"), "not a valid JSON"),
        (write("config.json", "[]"), "model_type"),
        (edit_json("config.json", model_type="zork"), "zork"),
        (edit_json("config.json", hidden_size="wide"), "hidden_size"),
        (edit_json("config.json", model_type="t5"), "AutoModelForCausalLM"),
        (remove("config.json"), "model_type"),
        (remove("model.safetensors"), "model.safetensors"),
        (truncate("model.safetensors", 0), "header too small"),
        (truncate("model.safetensors", 1000), "header"),
        (truncate("model.safetensors", 100_000), "incomplete"),
        (edit_json("config.json", num_hidden_layers=3), r"do not fit its config.json: \S+ and 8 more"),
        (edit_json("config.json", intermediate_size=96), r"do not fit its config.json: \S+ and 5 more"),
    ],
)
def test_broken_models(change: Change, match: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path, change)
    one_line(lambda: load_model(str(folder)), match, folder)


def test_missing_weights_are_no_random_numbers_in_4_bits_either(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path, edit_json("config.json", num_hidden_layers=3))
    one_line(lambda: load_model(str(folder), load_in_4bit=True), "do not fit its config.json", folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (write("tokenizer.json", "{nope"), "property name"),
        (write("tokenizer_config.json", "{nope"), "property name"),
        (write("config.json", "[]"), "TypeError: "),
        (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    ],
)
def test_broken_tokenizers(change: Change, match: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path, change)
    one_line(lambda: load_tokenizer(str(folder)), match, folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (write("adapter_config.json", "{nope"), "property name"),
        (write("adapter_config.json", "[]"), "TypeError: "),
        (write("adapter_config.json", "{}"), "KeyError: 'peft_type'"),
        (edit_json("adapter_config.json", peft_type="ZORK"), "KeyError: 'ZORK'"),
        (edit_json("adapter_config.json", target_modules=["zork"]), "zork"),
        (edit_json("adapter_config.json", r=8), "was it made for another model"),
        (edit_json("adapter_config.json", target_modules=["q_proj"]), "was it made for another model"),
        (remove("adapter_config.json"), "holds no adapter"),
        (remove("adapter_model.safetensors"), "holds no adapter"),
        (truncate("adapter_model.safetensors", 90), "header"),
    ],
)
def test_broken_adapters(change: Change, match: str, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path, change)
    one_line(lambda: load_model(str(tiny_model), str(folder)), match, folder)


@pytest.mark.parametrize("shape", [{"intermediate_size": 96}, {"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_an_adapter_of_another_model(shape: dict[str, int], adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Without a word PEFT leaves out the layers that a model lacks."""

    def reshape(folder: Path) -> None:
        edit_json("config.json", **shape)(folder)
        LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)

    other = changed(tiny_model, tmp_path, reshape)
    foreign = save_adapter(other, tmp_path / "adapter")
    one_line(lambda: load_model(str(tiny_model), str(foreign)), "was it made for another model", foreign)


def test_a_model_is_no_adapter_and_an_adapter_is_no_model(adapter: Path, tiny_model: Path) -> None:
    one_line(lambda: load_model(str(tiny_model), str(tiny_model)), "holds no adapter", tiny_model)
    one_line(lambda: load_model(str(adapter)), "is an adapter: name it in backbone.adapter", adapter)


def test_user_errors_are_not_wrapped_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        context_length(str(tmp_path / "none"))
    assert len(re.findall("there is no", str(error.value))) == 1


def test_context_length(tiny_model: Path) -> None:
    assert context_length(str(tiny_model)) == 4096


def test_a_mistyped_directory_is_not_sought_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no model directory 'models/none'"):
        load_model("models/none")


def test_a_trained_models_config_is_an_ordinary_one(tiny_model: Path, tmp_path: Path) -> None:
    """The attention of packed rows is this project's own affair."""
    load_backbone(settings(tiny_model, tune="full")).save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
