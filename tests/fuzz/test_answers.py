"""The permutation parser: a permutation from any text; settings beside an adapter: good ones or one named error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lit_rerank.as_trained import load_prompt_settings, load_reading
from lit_rerank.chain import FORMATS, MAX_IDENTIFIER
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.reading import Rounds, SlidingWindow, Twice
from lit_rerank.reference import Precomputed
from lit_rerank.sanitise import sanitise
from tests.fuzz.inputs import FUZZED, dumped, fuzz, mangled, mutated, survives
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
pieces = st.one_of(
    st.text(st.characters(codec=None), max_size=6),
    st.integers(-1, 10**12).map(lambda i: f"[{i}]"),
    st.sampled_from(
        ["Step 1:", "\nStep 2: ", "\n", " > ", "[", "]", "[[", "］", "[１]", "\r", "\u2028", "**", "<|im_end|>"]
    ),
)
signs = st.sampled_from([*"<>«»‹「」{}|/!#-=:։ː()1a ", "Step", "SYS", "é", "Տ", "\u0301", "->", "<!--", "-->", "❶"])


@pytest.mark.parametrize("name", FORMATS)
@fuzz(300)
@given(text=st.lists(pieces, max_size=30).map("".join), n=st.one_of(st.integers(1, 100), st.just(10**9)))
def test_answers(name: str, text: str, n: int) -> None:
    parsed = survives("answers", lambda: FORMATS[name].parse(text, n))
    assert (parsed is None) == (n > MAX_IDENTIFIER)
    if parsed is not None:
        assert sorted(parsed.permutation) == list(range(1, n + 1))


SETTINGS = {
    "format": "chain",
    "max_passage_tokens": 20,
    "max_length": 100,
    "repeat_identifier": True,
    "sanitise": True,
    "reading": {"window": 8, "stride": 4, "rounds": 2},
}


@fuzz(150)
@given(content=st.one_of(mutated(SETTINGS).map(dumped), mangled(dumped(SETTINGS))))
def test_prompt_settings(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lit_rerank.json").write_bytes(content)
    settings = survives("prompt settings", lambda: load_prompt_settings(tmp_path))
    if settings is not None:
        assert isinstance(settings, PromptSettings)
        survives("prompt settings", lambda: WindowEncoder(TOKENIZER, settings))
    assert isinstance(survives("reading", lambda: load_reading(tmp_path)), SlidingWindow | Rounds | Twice | None)


def cached_values() -> bytes:
    """Answers of a reference, as they are kept on disk."""
    tensors = {"keys": torch.tensor([1, 2]), "logps": torch.tensor([-1.0, -2.0])}
    return save(tensors, {"origin": json.dumps({"model": "m"})})


@fuzz(150)
@given(content=mangled(cached_values()))
def test_cached_values_of_a_reference(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    file.write_bytes(content)
    reference = Precomputed(str(tmp_path))
    reference.made_by, reference.values = {"model": "m"}, {}
    survives("cached values", lambda: reference._read(file))
    assert len(reference.values) in (0, 1, 2)


@fuzz(300)
@given(text=st.lists(st.one_of(pieces, signs), max_size=30).map("".join))
def test_sanitised_text_has_no_identifiers(text: str) -> None:
    FUZZED["sanitise"] += 1
    clean = sanitise(text)
    assert sanitise(clean) == clean
    assert "[1]" not in clean
    assert "\n" not in clean
    json.dumps(clean).encode()


def test_settings_of_older_adapters_load(tmp_path: Path) -> None:
    older: dict[str, Any] = {
        "format": "direct",
        "max_passage_tokens": 30,
        "max_length": None,
        "repeat_identifier": True,
    }
    (tmp_path / "lit_rerank.json").write_text(json.dumps(older))
    assert load_prompt_settings(tmp_path) == PromptSettings("direct", 30, None, True, sanitise=False)
