"""The strength of an adapter: on a live model, merged into one, and stored with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_rerank import Reranker
from lit_rerank.as_trained import load_prompt_settings, load_reading, save_settings
from lit_rerank.backbone import load_model
from lit_rerank.cli import evaluate
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.evaluation.merge import merged
from lit_rerank.reading import SlidingWindow
from lit_rerank.scale import check_base_is_kept, fold_scale, scaled

IDS = torch.arange(4, 44).reshape(1, 40)
SCALES = [0.0, 0.3, 1.0, 1.5, -0.5]
SETTINGS = PromptSettings(format="direct", max_passage_tokens=30)
# name -> LoRA settings
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 2}},
    "with bias": {"lora_bias": True, "target_modules": ["q_proj", "up_proj"]},
    "head and embeddings": {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
}


def save_adapter(model: Path, folder: Path, **lora: Any) -> str:
    """An adapter that has learned something (at random), with its prompt settings."""
    settings = LoraConfig(
        **({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora)
    )
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    adapted.save_pretrained(folder)
    save_settings(SETTINGS, SlidingWindow(8, 3), folder)
    return str(folder)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, save_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "a", **KINDS[request.param])


@torch.no_grad()
def logps(model: Any) -> Tensor:
    return model.eval()(IDS, use_cache=False).logits.float().log_softmax(-1)


def interpolated(model: Path, adapter: str, scale: float) -> Tensor:
    """By hand: the base weights, and so much of what merging adds to them."""
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    weights = {name: value.clone() for name, value in base.named_parameters()}
    whole = adapted.merge_and_unload().state_dict()
    with torch.no_grad():
        for name, value in base.named_parameters():
            value.copy_(weights[name] + scale * (whole[name] - weights[name]))
    return logps(base)


@pytest.mark.parametrize("four_bits", [False, True])
def test_zero_is_the_base_and_one_the_adapter_and_afterwards_all_is_as_before(
    kind: tuple[str, str], four_bits: bool, tiny_model: Path
) -> None:
    base = logps(load_model(str(tiny_model), load_in_4bit=four_bits, dtype="float32"))
    model = load_model(str(tiny_model), kind[1], load_in_4bit=four_bits, dtype="float32")
    trained = logps(model)
    assert (trained - base).abs().max() > 0.1
    with scaled(model, 0.0):
        assert torch.equal(logps(model), base)
        with scaled(model, 1.0):  # of the trained strength, wherever one stands
            assert torch.equal(logps(model), trained)
        assert torch.equal(logps(model), base)
    assert torch.equal(logps(model), trained)
    with scaled(model, 0.5):
        assert not torch.equal(logps(model), trained)
    with pytest.raises(ZeroDivisionError), scaled(model, 0.5):
        _ = 1 / 0
    assert torch.equal(logps(model), trained)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["plain", "rank-stabilised"])
def test_the_weights_lie_on_a_straight_line(name: str, scale: float, tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a", **KINDS[name])
    model = load_model(str(tiny_model), adapter)
    with scaled(model, scale):
        torch.testing.assert_close(logps(model), interpolated(tiny_model, adapter, scale), atol=1e-4, rtol=1e-4)


def test_only_the_active_adapter_is_scaled(tiny_model: Path, tmp_path: Path) -> None:
    model: Any = load_model(str(tiny_model), save_adapter(tiny_model, tmp_path / "a"))
    model.load_adapter(save_adapter(tiny_model, tmp_path / "b", use_rslora=True), "other")
    model.set_adapter("other")
    other = logps(model)
    model.set_adapter("default")
    with scaled(model, 0.25):
        model.set_adapter("other")
        assert torch.equal(logps(model), other)


UNSCALABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "modules": (lambda: LoraConfig(r=2, modules_to_save=["lm_head"]), r"replaces whole modules .*lm_head.*"),
    "tokens": (lambda: LoraConfig(r=2, trainable_token_indices=[3, 4]), "replaces embeddings of tokens .*"),
    "dora": (lambda: LoraConfig(r=2, use_dora=True), r"changes the lengths of weights \(DoRA\)"),
    "bias": (lambda: LoraConfig(r=2, bias="all"), r"changes biases \(bias: all\)"),
    "pissa": (lambda: LoraConfig(r=2, init_lora_weights="pissa"), r"changes the base weights \(pissa\)"),
}


@pytest.mark.parametrize("what", UNSCALABLE)
def test_an_adapter_that_cannot_be_scaled_is_refused_in_one_line(what: str, tiny_model: Path) -> None:
    make, reason = UNSCALABLE[what]
    settings = make()
    settings.task_type, settings.target_modules = "CAUSAL_LM", {"q_proj"}
    model = get_peft_model(load_model(str(tiny_model)), settings)
    for change in (lambda: scaled(model, 0.5).__enter__(), lambda: fold_scale(model, 0.5)):
        with pytest.raises(UserError, match=f"^the adapter {reason}: its strength cannot be changed$"):
            change()
    if what in ("bias", "pissa"):
        with pytest.raises(UserError, match=f"^the adapter {reason}: turned off, it does not leave the base model"):
            check_base_is_kept(model, "measure that alone")
    else:
        check_base_is_kept(model, "measure that alone")


def test_neither_other_kinds_nor_nothing_nor_infinity(tiny_model: Path, tmp_path: Path) -> None:
    prefix = get_peft_model(
        load_model(str(tiny_model)), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    plain = load_model(str(tiny_model), save_adapter(tiny_model, tmp_path / "a"))
    for model, scale, message in (
        (prefix, 0.5, "of the kind PREFIX_TUNING: only LoRA's strength"),
        (load_model(str(tiny_model)), 0.5, "there is no adapter whose strength"),
        (plain, float("nan"), "the scale nan is not a finite number"),
    ):
        with pytest.raises(UserError, match=message), scaled(model, scale):
            pass


# -- evaluate.py merge ------------------------------------------------------------------------------------------------


def merge(model: Path | str, adapter: str, out: Path, *more: str) -> None:
    evaluate(["merge", "--model", str(model), "--adapter", adapter, "--out", str(out), *more])


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_written_says_what_the_live_model_says(
    kind: tuple[str, str], scale: float, tiny_model: Path, tmp_path: Path
) -> None:
    name, adapter = kind
    live = load_model(str(tiny_model), adapter)
    with scaled(live, scale):
        expected = logps(live)
    merge(tiny_model, adapter, tmp_path / "kept", f"--scale={scale}", "--keep_adapter=true")
    kept = load_model(str(tiny_model), str(tmp_path / "kept"))
    torch.testing.assert_close(logps(kept), expected, atol=1e-4, rtol=1e-4)
    assert load_prompt_settings(tmp_path / "kept") == SETTINGS
    assert load_reading(tmp_path / "kept") == SlidingWindow(8, 3)
    if name in ("plain", "rank-stabilised"):
        merge(tiny_model, adapter, tmp_path / "whole", f"--scale={scale}")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")  # with nothing of ours
        torch.testing.assert_close(logps(whole), expected, atol=1e-4, rtol=1e-4)


def test_the_merged_model_is_a_reranker(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    merge(tiny_model, adapter, tmp_path / "new" / "whole")
    files = {file.name for file in (tmp_path / "new" / "whole").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "lit_rerank.json"} <= files
    assert not any("adapter" in name for name in files)
    assert "packed" not in (tmp_path / "new" / "whole" / "config.json").read_text()
    texts = [f"passage {i} about fleas" for i in range(5)]
    ranked = Reranker.from_pretrained(str(tmp_path / "new" / "whole")).rank("fleas", texts)
    expected = Reranker.from_pretrained(str(tiny_model), adapter).rank("fleas", texts)
    assert [passage.docid for passage in ranked] == [passage.docid for passage in expected]
    assert [p.score for p in ranked] == pytest.approx([p.score for p in expected], abs=1e-4)


def test_the_prompt_of_another_programs_adapter_is_not_known(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    (tmp_path / "a" / "lit_rerank.json").unlink()
    merge(tiny_model, adapter, tmp_path / "whole")
    merge(tiny_model, adapter, tmp_path / "kept", "--keep_adapter=true")
    assert not list(tmp_path.glob("*/lit_rerank.json"))


def test_a_directory_with_anything_in_it_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    for out, content in ((tmp_path / "full", "kept"), (tmp_path / "empty", None)):
        out.mkdir()
        if content is None:
            merge(tiny_model, adapter, out, "--scale=0.5")
            continue
        (out / "file").write_text(content)
        with pytest.raises(SystemExit, match="full holds something already: name a new directory"):
            merge(tiny_model, adapter, out)
        assert [(file.name, file.read_text()) for file in out.iterdir()] == [("file", content)]


def test_an_adapted_head_is_merged_whole_or_not_at_all(tmp_path: Path, tiny_model: Path) -> None:
    untied = tmp_path / "untied"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.save_pretrained(untied)
    (untied / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    (untied / "tokenizer_config.json").write_bytes((tiny_model / "tokenizer_config.json").read_bytes())
    adapter = save_adapter(untied, tmp_path / "a", modules_to_save=["lm_head"])
    with pytest.raises(SystemExit, match=r"^error: the adapter replaces whole modules [^\n]*cannot be changed$"):
        merge(untied, adapter, tmp_path / "half", "--scale=0.5")
    merge(untied, adapter, tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    expected = logps(load_model(str(untied), adapter))
    torch.testing.assert_close(logps(whole), expected, atol=1e-4, rtol=1e-4)
    merge(untied, adapter, tmp_path / "kept", "--keep_adapter=true")  # as it is
    torch.testing.assert_close(logps(load_model(str(untied), str(tmp_path / "kept"))), expected)


def test_what_cannot_be_merged_is_said_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a", target_modules=["lm_head", "q_proj"])
    with pytest.raises(SystemExit, match="share their weights in this model: they cannot be merged; set keep_adapter"):
        merge(tiny_model, adapter, tmp_path / "out")
    bias = save_adapter(tiny_model, tmp_path / "b", **KINDS["with bias"])
    with pytest.raises(SystemExit, match=r"cannot be merged \(.*has no bias\.\); set keep_adapter to true$"):
        merge(tiny_model, bias, tmp_path / "out")
    prefix = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    )
    prefix.save_pretrained(tmp_path / "p")
    with pytest.raises(SystemExit, match=r"p learns what stands before a prompt \(PREFIX_TUNING\): only"):
        merge(tiny_model, str(tmp_path / "p"), tmp_path / "out")
    with pytest.raises(UserError, match="is of the kind PREFIX_TUNING, which cannot be merged: set keep_adapter to"):
        merged(cast(Any, prefix))
    with pytest.raises(UserError, match="the model's weights are quantised"):
        merged(load_model(str(tiny_model), adapter, load_in_4bit=True))
    with pytest.raises(SystemExit, match="there is no adapter directory"):
        merge(tiny_model, "/nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_stored_settings_are_the_adapters_own(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    merge(tiny_model, adapter, tmp_path / "kept", "--scale=2", "--keep_adapter=true")
    before, after = (json.loads((Path(f) / "adapter_config.json").read_text()) for f in (adapter, tmp_path / "kept"))
    assert {name: after[name] for name in ("r", "lora_alpha")} == {name: before[name] for name in ("r", "lora_alpha")}
