"""token_logps against the model run on one context at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_rerank import scoring
from lit_rerank.attention import packed_attention
from lit_rerank.backbone import BackboneSettings, LoraSettings, load_backbone, load_model
from lit_rerank.cache import Cache
from lit_rerank.chat import Ids
from lit_rerank.errors import UserError
from lit_rerank.packing import Packer
from lit_rerank.scoring import compiled_length, token_logits, token_logps
from tests.test_packing import seen_by_layout

VOCABULARY = 300
Question = tuple[Ids, int]


def plain_logp(model: torch.nn.Module, context: Ids, token: int) -> Tensor:
    """log p(token | context), from the whole logits of one sequence."""
    return model(torch.tensor([context])).logits[0, -1].log_softmax(-1)[token]


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of everything that is trained; the model's own are left clean."""
    model.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(left: dict[str, Tensor], right: dict[str, Tensor], rtol: float = 1e-4) -> None:
    """Equal up to `rtol` of the largest component of each parameter's gradient."""
    assert left.keys() == right.keys()
    assert any(gradient.abs().max() > 0 for gradient in left.values())
    for name, expected in left.items():
        atol = 1e-6 + rtol * float(expected.abs().max())
        torch.testing.assert_close(right[name], expected, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def load(directory: Path) -> PreTrainedModel:
    return load_model(str(directory), trainable=True)


def with_adapted_head(directory: Path) -> PreTrainedModel:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(load(directory), config)


def with_bias(directory: Path) -> PreTrainedModel:
    model = load(directory)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    return model


def checkpointed(directory: Path) -> PreTrainedModel:
    model = load(directory)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def questions_about(trunks: int, seed: int = 0, length: int = 40) -> tuple[Packer, list[Question]]:
    """Questions about some trunks, which begin alike, and about branches that leave them here and there."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> Ids:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    stem = tokens(12)
    packer, questions = Packer(), []
    for _ in range(trunks):
        ids = stem + tokens(length)
        number = packer.trunk(ids)
        fork = tokens(2)
        for place, branch in [
            (1, ()),
            (12, ()),
            (15, tokens(1)),
            (30, ()),
            (30, tokens(3)),
            (31, fork),
            (len(ids), ()),
        ]:
            for token in tokens(2):
                packer.ask(number, place, token, branch)
                questions.append((ids[:place] + branch, token))
        for branch in (fork[:1] + tokens(1), fork + tokens(4)):  # they share their first tokens
            packer.ask(number, 31, 7, branch)
            questions.append((ids[:31] + branch, 7))
    return packer, questions


def check_is_twin(model: PreTrainedModel, packer: Packer, questions: list[Question], rtol: float = 1e-4) -> None:
    found = token_logps(model, packer.pack())
    expected = torch.stack([plain_logp(model, *question) for question in questions])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=rtol)
    weights = torch.linspace(-1, 2, len(questions))
    assert_same_gradients(gradients(model, (expected * weights).sum()), gradients(model, (found * weights).sum()), rtol)


@pytest.mark.parametrize("length", [40, 500])  # attention of short rows and of long ones
@pytest.mark.parametrize("trunks", [1, 3])
@pytest.mark.parametrize("make", [load, with_adapted_head, checkpointed])
def test_values_and_gradients_are_those_of_one_context_at_a_time(make, trunks, length, tiny_model: Path) -> None:
    check_is_twin(make(tiny_model).train(), *questions_about(trunks, length=length))


@torch.no_grad()
def check_goes_on(model: PreTrainedModel) -> None:
    """Two trunks read in pieces, with branches after each, against one context at a time."""
    draw = torch.Generator().manual_seed(0)
    trunks = [tuple(torch.randint(VOCABULARY, (length,), generator=draw).tolist()) for length in (40, 33)]
    caches = [Cache(50), Cache(50)]
    branches: list[Ids] = [(), (3,), (3, 8), (4, 8, 1), (3, 7)]
    for pieces in ((21, 20), (22, 28), (39, 33)):
        packer, questions = Packer(), []
        for ids, cache, length in zip(trunks, caches, pieces, strict=True):
            number = packer.trunk(ids[:length], cache)
            for branch in branches:
                packer.ask(number, length, 5, branch)
                questions.append((ids[:length] + branch, 5))
        packed = packer.pack()
        assert len(packed) == sum(pieces) - sum(cache.length for cache in caches) + 2 * 6
        expected = torch.stack([plain_logp(model, *question) for question in questions])
        torch.testing.assert_close(token_logps(model, packed), expected, atol=1e-5, rtol=1e-4)
        for cache, length in zip(caches, pieces, strict=True):
            cache.length = length


def test_reading_goes_on_from_a_cache(tiny_model: Path) -> None:
    check_goes_on(load(tiny_model).eval())


def test_trunks_of_one_beginning_fill_their_caches(tiny_model: Path) -> None:
    model, stem, caches = load(tiny_model).eval(), tuple(range(3, 30)), [Cache(40), Cache(40)]
    for lengths in (30, 36):
        packer, questions = Packer(), []
        for cache, tail in zip(caches, (tuple(range(50, 60)), tuple(range(70, 80))), strict=True):
            ids = (stem + tail)[:lengths]
            packer.ask(packer.trunk(ids, cache), lengths, 9)
            questions.append((ids, 9))
        with torch.no_grad():
            expected = torch.stack([plain_logp(model, *question) for question in questions])
            torch.testing.assert_close(token_logps(model, packer.pack()), expected, atol=1e-5, rtol=1e-4)
        for cache in caches:
            cache.length = lengths


@pytest.mark.parametrize("make", [load, with_adapted_head, with_bias])
def test_logits_are_log_probabilities_but_for_what_is_common_to_a_place(make, tiny_model: Path) -> None:
    model, (packer, _) = make(tiny_model).eval(), questions_about(trunks=2)
    packed = packer.pack()
    with torch.no_grad():
        logits, logps = token_logits(model, packed), token_logps(model, packed)
    for place in packed.place.unique():
        asked = packed.place == place
        apart = logits[asked] - logps[asked]
        torch.testing.assert_close(apart, apart[:1].expand_as(apart), atol=1e-5, rtol=0)
    assert model(torch.zeros(2, 5, dtype=torch.long)).logits.shape == (2, 5, model.config.vocab_size)


def test_every_token_is_read_once(tiny_model: Path) -> None:
    model = load(tiny_model)
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    packer, questions = questions_about(trunks=3)
    token_logps(model, packer.pack())
    contexts = {context[: i + 1] for context, _ in questions for i in range(len(context))}
    assert read == [len(contexts)]


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 8}),
        ("phi3", {}),
        ("gpt_neox", {}),
        # Layers of limited sight: it is shorter than the trunks, and than some branches are long.
        ("mistral", {"sliding_window": 9}),
        ("gemma3_text", {"sliding_window": 3, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_families_of_models(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_is_twin(load(tmp_path).eval(), *questions_about(trunks=2))
    check_goes_on(load(tmp_path).eval())


def test_compiled_rows_have_few_lengths_and_little_padding() -> None:
    lengths = [compiled_length(tokens) for tokens in range(1, 2**15 + 1)]
    assert len(set(lengths)) == 16 + 3 * 8
    assert all(0 <= length - tokens < max(256, tokens / 8) for tokens, length in enumerate(lengths, start=1))


def test_compiled_layers_read_rows_of_few_lengths(tiny_model: Path) -> None:
    lora = LoraSettings(r=2, target_modules=["q_proj"])
    plain, compiled = (load_backbone(BackboneSettings(str(tiny_model), lora=lora, compile=c)) for c in (False, True))
    compiled.load_state_dict(plain.state_dict())
    lengths: list[int] = []
    compiled.get_input_embeddings().register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    graphs = []
    for seed, trunks in enumerate((5, 1, 2, 5)):
        packed = questions_about(trunks, seed)[0].pack()
        answers = [token_logps(model, packed) for model in (plain, compiled)]
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
        found = [gradients(m, a.sum()) for m, a in zip((plain, compiled), answers, strict=True)]
        assert_same_gradients(*found)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert lengths == [512, 256, 256, 512]
    assert graphs[0] < graphs[1] == graphs[3]  # other layouts of the same length are no reason to compile anew


def test_layers_stay_compiled_however_many_lengths_come(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, called = [0], [0]
    plainly = torch.nn.Module.compile

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled[0] += 1

        def run(*args: Any) -> Any:
            called[0] += 1
            return graph(*args)

        return run

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plainly(self, backend=count, **options))
    monkeypatch.setattr(scoring, "COMPILED_LENGTH", 4)  # 16 lengths up to 64 tokens, 40 up to 512
    torch._dynamo.reset()
    model = load_backbone(BackboneSettings(str(tiny_model), tune="full", compile=True))
    del model.model.layers[1:]  # they are alike, and what is below is quicker to compile
    model.model.layers[0].mlp = torch.nn.Identity()

    def read(tokens: int, learn: bool) -> int:
        """How many compiled graphs ran."""
        packer, before = Packer(), called[0]
        packer.ask(packer.trunk(tuple(i % VOCABULARY for i in range(tokens))), tokens, 9)
        with torch.set_grad_enabled(learn):
            answer = token_logps(model.train(learn), packer.pack())
        if learn:
            answer.sum().backward()
        return called[0] - before

    lengths = sorted({compiled_length(tokens) for tokens in range(1, 513)})
    assert len(lengths) == 40
    first = {(length, i % 2 == 0): read(length, i % 2 == 0) for i, length in enumerate(lengths)}
    assert min(first.values()) >= 1
    before = compiled[0]
    assert before >= len(lengths)
    assert {(length, learn): read(length - 1, learn) for length, learn in first} == first
    assert compiled[0] == before  # nothing is compiled twice, and nothing runs uncompiled
    torch._dynamo.reset()


def test_the_head_sees_each_place_once_and_is_left_as_it_was(tiny_model: Path) -> None:
    model = load(tiny_model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[:-1].numel()))
    packer, questions = questions_about(trunks=2)
    token_logps(model, packer.pack())
    assert seen == [len({context for context, _ in questions})]
    assert seen[0] < len(questions)
    assert model(torch.zeros(2, 5, dtype=torch.long)).logits.shape[:2] == (2, 5)


def test_answers_are_float32_whatever_the_model_computes_in(tiny_model: Path) -> None:
    packer, questions = questions_about(trunks=2)
    found = token_logps(load_model(str(tiny_model), dtype="bfloat16"), packer.pack())
    assert found.dtype == torch.float32
    expected = torch.stack([plain_logp(load(tiny_model), *question) for question in questions])
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.01)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mamba", "MambaForCausalLM"),
        ("gemma2", "Gemma2ForCausalLM"),
        ("stablelm", "StableLmForCausalLM"),
    ],
)
def test_models_that_cannot_read_packed_rows_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    """They have no attention, more than a softmax in it, or none that can be told who sees whom."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"^{name} cannot read packed rows: they need") as error:
        token_logps(load(tmp_path), questions_about(trunks=1)[0].pack())
    assert "\n" not in str(error.value)


def test_a_mask_of_the_models_own_is_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="DogeAttention changes the attention mask or drops the layout"):
        token_logps(load(tmp_path), questions_about(trunks=1)[0].pack())


def test_layers_that_are_no_attention_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("lfm2", **SHAPE, layer_types=["conv", "full_attention"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Lfm2ForCausalLM cannot read packed rows"):
        token_logps(load(tmp_path), questions_about(trunks=1)[0].pack())


def test_a_layout_that_is_dropped_on_the_way_is_noticed(tiny_model: Path) -> None:
    model = load(tiny_model)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"layout": None}), with_kwargs=True)
    with pytest.raises(UserError, match="LlamaAttention changes the attention mask or drops the layout"):
        token_logps(model, questions_about(trunks=1)[0].pack())


def test_values_of_another_size_than_keys() -> None:
    layout = questions_about(trunks=2)[0].pack().layout
    query, key, value = (torch.randn(1, heads, len(layout), size) for heads, size in ((4, 6), (2, 6), (2, 3)))
    mark = torch.ones(1, 1, 1, 1)
    found, _ = packed_attention(torch.nn.Module(), query, key, value, mark, layout)
    seen = seen_by_layout(layout)
    whole = [x.repeat_interleave(2, 1) for x in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=seen).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
