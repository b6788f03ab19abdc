"""token_logps against the model run on one context at a time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rerank.backbone import BackboneSettings, LoraSettings, load_backbone
from lit_rerank.chat import Ids
from lit_rerank.scoring import RowsBuilder, token_logps

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
    return AutoModelForCausalLM.from_pretrained(directory)


def with_adapted_head(directory: Path) -> PreTrainedModel:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(load(directory), config)


def branching_questions(seed: int) -> tuple[RowsBuilder, list[Question]]:
    """Questions about sequences of several lengths that go on from one beginning, the first at its very end."""
    draw = torch.Generator().manual_seed(seed)
    stem, *ends = (tuple(torch.randint(VOCABULARY, (n,), generator=draw).tolist()) for n in (20, 3, 11, 7, 5))
    builder, questions = RowsBuilder(), []
    for end in ends:
        ids = stem + end
        number = builder.sequence(ids)
        for length in (len(stem), len(stem) + 1, len(ids)):
            builder.ask(number, length, length)
            questions.append((ids[:length], length))
    return builder, questions


def random_questions(seed: int) -> tuple[RowsBuilder, list[Question]]:
    """Questions about sequences that begin, branch off, repeat or have nothing to do with one another."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> Ids:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    stem = tokens(12)
    sequences = [stem, stem[:5], stem + tokens(7), stem + tokens(3), stem[:5] + tokens(9), tokens(4), stem]
    builder, questions = RowsBuilder(), []
    for ids in sequences:
        number = builder.sequence(ids)
        for length in (1, len(ids) // 2, len(ids), len(ids)):
            (token,) = tokens(1)
            builder.ask(number, length, token)
            questions.append((ids[:length], token))
    return builder, questions


@pytest.mark.parametrize("make", [load, with_adapted_head])
def test_values_and_gradients_are_those_of_one_context_at_a_time(make, tiny_model: Path) -> None:
    model = make(tiny_model).train()
    builder, questions = random_questions(seed=1)
    found = token_logps(model, builder.rows())
    expected = torch.stack([plain_logp(model, *question) for question in questions])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.linspace(-1, 2, len(questions))
    assert_same_gradients(gradients(model, (expected * weights).sum()), gradients(model, (found * weights).sum()))


@pytest.mark.parametrize("make", [load, with_adapted_head])
def test_a_common_beginning_is_read_once(make, tiny_model: Path) -> None:
    model = make(tiny_model).train()
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    builder, questions = branching_questions(seed=5)
    rows = builder.rows()
    found = token_logps(model, rows)
    assert (rows.trunk, read) == (19, [19, 4 * 12])
    expected = torch.stack([plain_logp(model, *question) for question in questions])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.linspace(-1, 2, len(questions))
    assert_same_gradients(gradients(model, (expected * weights).sum()), gradients(model, (found * weights).sum()))


def test_checkpointed_layers_read_whole_rows(tiny_model: Path) -> None:
    """They keep no keys for others to attend to."""
    rows = branching_questions(seed=5)[0].rows()
    plain, checkpointed = load(tiny_model).train(), load(tiny_model).train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    answers = [token_logps(model, rows) for model in (plain, checkpointed)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
    found = [gradients(m, a.sum()) for m, a in zip((plain, checkpointed), answers, strict=True)]
    assert_same_gradients(*found)


def test_compiled_layers_read_rows_of_few_lengths(tiny_model: Path) -> None:
    lora = LoraSettings(r=2, target_modules=["q_proj"])
    plain, compiled = (load_backbone(BackboneSettings(str(tiny_model), lora=lora, compile=c)) for c in (False, True))
    compiled.load_state_dict(plain.state_dict())
    lengths: list[int] = []
    compiled.get_input_embeddings().register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    for seed in (5, 1):  # with a common beginning and without
        rows = (branching_questions(seed) if seed == 5 else random_questions(seed))[0].rows()
        answers = [token_logps(model, rows) for model in (plain, compiled)]
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
        found = [gradients(m, a.sum()) for m, a in zip((plain, compiled), answers, strict=True)]
        assert_same_gradients(*found)
    assert lengths == [64, 64]


def test_padding_never_matters(tiny_model: Path) -> None:
    model = load(tiny_model)
    rows = random_questions(seed=2)[0].rows()
    expected = token_logps(model, rows)
    padding = torch.ones_like(rows.ids, dtype=torch.bool)
    for row, position in zip(rows.row, rows.position, strict=True):
        padding[row, : position + 1] = False
    assert padding.any()
    rows.ids[padding] = torch.randint(VOCABULARY, (int(padding.sum()),), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(token_logps(model, rows), expected, atol=1e-6, rtol=1e-6)


def test_the_head_sees_each_place_once_and_is_left_as_it_was(tiny_model: Path) -> None:
    model = load(tiny_model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[:-1].numel()))
    builder, questions = random_questions(seed=3)
    rows = builder.rows()
    token_logps(model, rows)
    assert seen == [len({(int(r), int(p)) for r, p in zip(rows.row, rows.position, strict=True)})]
    assert seen[0] < len(questions)
    assert model(rows.ids).logits.shape[:2] == rows.ids.shape


def test_answers_are_float32_whatever_the_model_computes_in(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    builder, questions = random_questions(seed=4)
    found = token_logps(model, builder.rows())
    assert found.dtype == torch.float32
    expected = torch.stack([plain_logp(load(tiny_model), *question) for question in questions])
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0.05)  # bfloat16 has 8 bits


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12))
@settings(deadline=None)
def test_prefixes_share_rows(sequences: list[Ids]) -> None:
    builder = RowsBuilder()
    for ids in sequences:
        builder.ask(builder.sequence(ids), len(ids), 0)
    rows = builder.rows()
    for ids, row in zip(sequences, rows.row.tolist(), strict=True):
        assert rows.ids[row, : len(ids)].tolist() == list(ids)
    distinct = {ids for ids in sequences if not any(is_proper_prefix(ids, other) for other in sequences)}
    assert len(rows.ids) == len(distinct)
    assert rows.tokens == sum(map(len, distinct))
    assert len({ids[: rows.trunk] for ids in distinct}) == 1
    assert rows.trunk <= min(map(len, sequences)) - 1


def is_proper_prefix(ids: Sequence[int], other: Sequence[int]) -> bool:
    return len(ids) < len(other) and other[: len(ids)] == ids
