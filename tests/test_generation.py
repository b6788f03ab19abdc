"""Batched generation answers as one-by-one generation does, and whatever comes out is read as a permutation."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from data_modules.records import Window
from lit_rerank.backbone import load_model, load_tokenizer
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.generation import Generate
from tests.tiny import record


def make_generator(model: Path, max_batch_tokens: int, format: str = "chain", context: int | None = None) -> Generate:
    encoder = WindowEncoder(load_tokenizer(str(model)), PromptSettings(format), context)
    return Generate(load_model(str(model), dtype="float32"), encoder, max_batch_tokens)


def windows() -> list[Window]:
    return [Window.of(record(f"q{i}", n), range(n)) for i, n in enumerate((3, 7, 2, 12, 5))]


def generate_alone(generator: Generate, window: Window) -> str:
    """The twin: one prompt, no padding, argmax of the whole logits, everything read again for each token."""
    encoder, end = generator.encoder, generator.encoder.chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = list(encoder.encode_prompt(window))
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < encoder.completion_length(len(window)) and end not in ids[start:]:
            ids.append(int(generator.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(encoder.chat.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("format", ["chain", "direct"])
@pytest.mark.parametrize("max_batch_tokens", [1, 1500])
def test_batches_of_unequal_windows_get_the_answers_that_each_gets_alone(
    tiny_model: Path, format: str, max_batch_tokens: int
) -> None:
    generator = make_generator(tiny_model, max_batch_tokens, format)
    for window, decoded in zip(windows(), generator(windows()), strict=True):
        assert decoded.text == generate_alone(generator, window)
        assert sorted(decoded.permutation) == list(range(1, len(window) + 1))


def test_compiled_layers_generate_uncompiled(tiny_model: Path) -> None:
    generator, compiled = make_generator(tiny_model, 1500), CompileCounter()
    expected = generator(windows())
    for layer in generator.model.model.layers:
        layer.compile(backend=compiled)
    assert generator(windows()) == expected
    assert compiled.frame_count == 0
    generator.model(torch.tensor([[1, 2, 3]]))
    assert compiled.frame_count > 0


def test_a_random_model_is_malformed_and_repaired(tiny_model: Path) -> None:
    decoded = make_generator(tiny_model, 10**6)(windows())
    assert any(answer.malformed for answer in decoded)


def test_a_window_beyond_the_context_is_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"query 'q3': 12 passages .* exceed the context of 300"):
        make_generator(tiny_model, 10**6, context=300)(windows()[3:4])


def test_greedy_means_greedy_whatever_the_model_recommends(tiny_model: Path) -> None:
    generator = make_generator(tiny_model, 10**6)
    answers = generator(windows())
    recommended = generator.model.generation_config
    assert recommended is not None
    recommended.repetition_penalty, recommended.no_repeat_ngram_size, recommended.num_beams = 3.0, 2, 2
    recommended.do_sample, recommended.temperature, recommended.min_new_tokens = True, 2.0, 30
    recommended.suppress_tokens = [5, 6, 7, 8, 9, 10, 11, 12]
    assert generator(windows()) == answers
