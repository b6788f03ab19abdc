"""Forced-text decoding against `generate` under the same constraint, and against reading everything again."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from data_modules.records import Passage, Window
from lit_rerank.backbone import BackboneSettings, LoraSettings, load_backbone, load_model, load_tokenizer
from lit_rerank.chat import Ids
from lit_rerank.decoder import Decoded
from lit_rerank.decoding import First, Stepwise
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.scoring import token_logps
from lit_rerank.targets import SFTTargets
from scripts.check_decoding import constrained, difference, real_windows
from tests.encoders import PAIRS, encoder
from tests.tiny import record, save_tiny_model
from tests.tokenizers import chat_tokenizer

MODEL = Path(__file__).resolve().parent.parent / "models" / "smollm2-135m-instruct"


def coder(model: Path, form: str = "chain", context: int | None = None) -> WindowEncoder:
    return WindowEncoder(load_tokenizer(str(model)), PromptSettings(form), context)


def stepwise(model: Path, form: str = "chain", max_batch_tokens: int = 10**6) -> Stepwise:
    return Stepwise(load_model(str(model), dtype="float32"), coder(model, form), max_batch_tokens)


def windows() -> list[Window]:
    return [Window.of(record(f"q{i}", n), range(n)) for i, n in enumerate((3, 7, 2, 12, 5, 1, 21))]


def assert_same(found: Decoded, expected: Decoded, tolerance: float = 1e-4) -> None:
    assert found.permutation == expected.permutation
    assert found.logps == pytest.approx(expected.logps, abs=tolerance)


def assert_equal_choices(found: Decoded, expected: Decoded) -> None:
    """The same permutation, or where a choice differs, scores within 1e-4; the same scores up to there."""
    assert difference(found, expected) < 1e-4
    assert len(found.permutation) == len(expected.permutation)


# -- against generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("form", ["chain", "direct"])
def test_choices_are_those_of_generate_under_the_same_constraint(
    pair: tuple[str, str], form: str, tmp_path: Path
) -> None:
    decoder = stepwise(save_tiny_model(tmp_path, tokenizer=chat_tokenizer(*pair)), form)
    shown = [window for window in windows() if 1 < len(window) < 13]
    for found, expected in zip(decoder(shown), constrained(decoder.model, decoder.encoder, shown), strict=True):
        assert_equal_choices(found, expected)
        assert found.text == expected.text


@pytest.mark.skipif(not MODEL.is_dir(), reason="models/smollm2-135m-instruct is absent: run `make model`")
@pytest.mark.parametrize("trained", [False, True], ids=["base", "trained adapter"])
def test_real_windows(trained: bool, shared_data: Path) -> None:
    encoder = WindowEncoder(load_tokenizer(str(MODEL)), PromptSettings(max_passage_tokens=30), 8192)
    shown = real_windows(shared_data / "train", 12, (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20))
    model: Any = load_model(str(MODEL), dtype="float32")
    if trained:
        model = load_backbone(BackboneSettings(str(MODEL), dtype="float32", lora=LoraSettings(r=4)))
        learn(model, encoder, shown[0])
    decoder = Stepwise(model, encoder)
    together = [*constrained(model, encoder, shown[:-1]), *constrained(model, encoder, shown[-1:])]
    for found, expected in zip(decoder(shown), together, strict=True):
        assert_equal_choices(found, expected)


def learn(model: Any, encoder: WindowEncoder, window: Window) -> None:
    """A few steps on one window, so that the adapter is no longer nothing."""
    targets = SFTTargets.build([encoder.encode(replace(window, permutation=tuple(range(len(window), 0, -1))))])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        targets.loss(token_logps(model, targets.packed)).windows.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


# -- against reading everything again -----------------------------------------------------------------------------


def read_again(decoder: Stepwise, window: Window, choices: int) -> Decoded:
    """The twin: no cache, no batch, no branches; the whole text again for every token of every choice."""
    encoder, prompt = decoder.encoder, decoder.encoder.encode_prompt(window)
    chosen: dict[int, float] = {}
    scores: dict[int, float] = {}
    while len(chosen) < min(choices, len(window)):
        left = {encoder.identifier_ids(i): i for i in range(1, len(window) + 1) if i not in chosen}
        state = prompt + encoder.before_choice(tuple(chosen), len(window))
        scores = {
            i: sum(following(decoder, state, ids[:d], left)[ids[d]] for d in range(len(ids))) for ids, i in left.items()
        }
        path: tuple[int, ...] = ()
        while path not in left:
            going_on = following(decoder, state, path, left)
            path += (max(going_on, key=going_on.__getitem__),)
        chosen[left[path]] = scores.pop(left[path])
    order = chosen | dict(sorted(scores.items(), key=lambda item: -item[1]))
    return Decoded(tuple(order), tuple(order.values()))


def following(decoder: Stepwise, state: Ids, path: Ids, left: Iterable[Ids]) -> dict[int, float]:
    """Log-probabilities of the tokens that go on from `path` to an identifier that is left."""
    allowed = sorted({ids[len(path)] for ids in left if ids[: len(path)] == path})
    with torch.no_grad():
        logits = decoder.model(torch.tensor([[*state, *path]])).logits[0, -1, allowed]
    return dict(zip(allowed, logits.log_softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("form", ["chain", "direct"])
@pytest.mark.parametrize("choices", [1, 2, 4, 11, 12])
def test_cached_choices_are_those_of_reading_everything_again(form: str, choices: int, tiny_model: Path) -> None:
    decoder = stepwise(tiny_model, form)
    window = windows()[3]
    (found,) = decoder([window], [choices])
    assert_same(found, read_again(decoder, window, choices))


@pytest.mark.parametrize("form", ["chain", "direct"])
@pytest.mark.parametrize("max_batch_tokens", [1, 1500])
def test_batches_do_not_matter(form: str, max_batch_tokens: int, tiny_model: Path) -> None:
    together = stepwise(tiny_model, form)(windows(), [3, 7, 1, 5, 5, 1, 8])
    apart = stepwise(tiny_model, form, max_batch_tokens)(windows(), [3, 7, 1, 5, 5, 1, 8])
    for found, expected in zip(apart, together, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("form", ["chain", "direct"])
def test_batches_in_bfloat16_differ_by_rounding(form: str, tiny_model: Path) -> None:
    """Rows of other shapes round otherwise, to 8 bits: where another choice is made, the two scored within 0.05."""
    model = load_model(str(tiny_model), dtype="bfloat16")
    together, apart = (Stepwise(model, coder(tiny_model, form), limit)(windows()) for limit in (10**6, 1))
    for found, expected in zip(apart, together, strict=True):
        assert sorted(found.permutation) == sorted(expected.permutation)
        assert difference(found, expected) < 0.05


def test_every_token_but_the_last_steps_is_read_once(tiny_model: Path) -> None:
    decoder, read = stepwise(tiny_model), []
    decoder.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    window = windows()[1]
    (decoded,) = decoder([window])
    assert len(read) == 6  # one forward a choice; the seventh is none
    prompt = decoder.encoder.encode_prompt(window)
    last = decoder.encoder.before_choice(decoded.permutation[:5], 7)
    assert sum(read) == len(prompt) + len(last)


def test_the_first_choices_scores_order_the_window(tiny_model: Path) -> None:
    decoder = stepwise(tiny_model)
    for window in [window for window in windows() if len(window) > 2]:
        (found,) = First(decoder.model, decoder.encoder)([window])
        (step,) = decoder([window], [1])
        scores = dict(zip(step.permutation, step.logps or (), strict=True))
        assert found.permutation == tuple(sorted(scores, key=lambda i: (-scores[i], i)))
        assert list(found.logps or ()) == sorted(found.logps or (), reverse=True)
        assert sum(torch.tensor(found.logps).exp()) == pytest.approx(1.0, abs=1e-4)


def test_probabilities_of_the_rest_are_those_of_the_last_choice(tiny_model: Path) -> None:
    (decoded,) = stepwise(tiny_model)([windows()[3]], [4])
    assert sum(torch.tensor(decoded.logps[3:]).exp()) == pytest.approx(1.0, abs=1e-4)
    assert list(decoded.logps[4:]) == sorted(decoded.logps[4:], reverse=True)
    assert decoded.text.count("Step") == 4


# -- always a permutation -----------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", " ", "Step 1: [2]\nStep 2: [2] > [1]", "[1] > [2]<|im_end|>", "<|im_start|>assistant\n[3]"]),
)


@pytest.fixture(scope="module", params=[("smollm2", "chatml"), ("llama3", "llama3"), ("spm", "mistral")], ids="-".join)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Tokenizers that split digits, merge digits, and mark spaces; each with its model and both formats' encoders."""
    tokenizer = chat_tokenizer(*request.param)
    model = load_model(str(save_tiny_model(tmp_path_factory.mktemp("kind"), tokenizer=tokenizer)), dtype="float32")
    return model, {form: encoder(tokenizer, form) for form in ("chain", "direct")}


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_passages_the_answer_is_a_permutation(kind: tuple[Any, Any], data: st.DataObject) -> None:
    model, encoders = kind
    n = data.draw(st.integers(1, 100))
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=5))
    window = Window("q", data.draw(TEXTS) or "query", tuple(Passage(f"d{i}", texts[i % len(texts)]) for i in range(n)))
    form = data.draw(st.sampled_from(["chain", "direct"]))
    choices = data.draw(st.integers(0, n if form == "direct" or n < 13 else 3))
    decoder = data.draw(st.sampled_from([Stepwise, First]))(model, encoders[form])
    (decoded,) = decoder([window], [choices])
    assert sorted(decoded.permutation) == list(range(1, n + 1))
    assert len(decoded.logps) == n
    assert all(logp <= 1e-6 for logp in decoded.logps)


# -- what does not fit --------------------------------------------------------------------------------------------


def test_compiled_layers_decode_uncompiled(tiny_model: Path) -> None:
    decoder, compiled = stepwise(tiny_model), CompileCounter()
    expected = decoder(windows())
    for layer in decoder.model.model.layers:
        layer.compile(backend=compiled)
    assert [found.permutation for found in decoder(windows())] == [one.permutation for one in expected]
    assert compiled.frame_count == 0


def test_answers_that_are_no_numbers_are_refused(tiny_model: Path) -> None:
    for broken in (float("nan"), float("inf")):
        decoder = stepwise(tiny_model)
        with torch.no_grad():
            decoder.model.model.norm.weight.fill_(broken)
        with pytest.raises(UserError, match="the model's logits are not finite"):
            decoder(windows())


def test_a_window_of_nothing_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="a window of query 'q' holds no passage"):
        stepwise(tiny_model)([Window("q", "query", ())])


def test_threads_wait_for_each_other(tiny_model: Path) -> None:
    decoder = stepwise(tiny_model)
    expected = decoder(windows())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decoder, [windows()] * 12)) == [expected] * 12


def test_a_compiled_model_reads_no_padding_when_it_decodes(tiny_model: Path) -> None:
    decoder, lengths = stepwise(tiny_model), []
    decoder.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    decoder(windows())
    plain, lengths[:] = list(lengths), []
    for layer in decoder.model.model.layers:
        layer.compile(backend=CompileCounter())
    decoder(windows())
    assert lengths == plain


def test_a_chain_of_thirty(tiny_model: Path) -> None:
    decoder, window = stepwise(tiny_model), Window.of(record("q", 30), range(30))
    (found,) = decoder([window])
    assert sorted(found.permutation) == list(range(1, 31))
    assert_equal_choices(found, constrained(decoder.model, decoder.encoder, [window])[0])


def test_only_what_is_asked_for_must_fit_the_context(tiny_model: Path) -> None:
    model, window, free = load_model(str(tiny_model)), windows()[3], coder(tiny_model)
    context = len(free.encode_prompt(window)) + free.completion_length(12, 2)
    decoder = Stepwise(model, coder(tiny_model, context=context))
    with pytest.raises(UserError, match=rf"query 'q3': 12 passages .* exceed the context of {context}"):
        decoder([window])
    assert len(decoder([window], [2])[0].permutation) == 12
