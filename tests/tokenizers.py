"""Tokenizers of every kind that chat models have, trained in memory on a few lines, and chat templates for them.

What makes them differ where identifiers are concerned is asserted when they are built, so that no test of a merge
passes for want of that merge.
"""

import copy
import io
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from lit_rerank.chain import FORMATS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<end_of_turn>",
)
NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # added all the same, as Qwen has them

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


# -- training texts ---------------------------------------------------------------------------------------------


def _prose() -> list[str]:
    """What prompts are made of, without numbers."""
    texts = [form.user("what is a flea", ["Fleas live for days; they don't fly."]) for form in FORMATS.values()]
    texts += [form.system for form in FORMATS.values()]
    return re.sub("[0-9]", "x", "\n".join(texts)).splitlines()


def _answers(numbers: Iterable[object]) -> list[str]:
    """Answers of both formats, with the line ends that merge; `numbers` stand where identifiers do."""
    return [f"Step {i}: [{i}] > [{i}] > [{i}]\n[{i}] > [{i}]\n" for i in numbers]


# -- byte-level BPE ---------------------------------------------------------------------------------------------


def _byte_level(
    texts: Iterable[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    **model: bool,
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_prose(), *texts] * 2, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        name_or_path="tests/byte-level",
    )
    fast.add_tokens([AddedToken(token, normalized=False, special=False) for token in NOT_SPECIAL])
    return fast


def _split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def smollm2() -> PreTrainedTokenizerFast:
    """Digits one by one, a bracket merges with the space before it."""
    tokenizer = _byte_level(
        _answers(range(1, 10)),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    )
    assert _pieces(tokenizer, " > [12]\n") == ["Ġ>", "Ġ[", "1", "2", "]", "Ċ"]
    return tokenizer


def qwen2() -> PreTrainedTokenizerFast:
    """Digits one by one, a bracket merges with the space before and the line end after it; NFC."""
    tokenizer = _byte_level(_answers(range(1, 10)), _split(QWEN2), normalizers.NFC())
    assert _pieces(tokenizer, " > [12]\n") == ["Ġ>", "Ġ[", "1", "2", "]Ċ"]
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """Every number is one token, a bracket merges with the space before and the line end after it."""
    tokenizer = _byte_level(_answers(range(1, 101)), _split(LLAMA3), ignore_merges=True)
    assert all(_pieces(tokenizer, f" > [{i}]\n") == ["Ġ>", "Ġ[", str(i), "]Ċ"] for i in range(1, 101))
    return tokenizer


def gpt2() -> PreTrainedTokenizerFast:
    """Some numbers are one token (50..100), the smaller ones are not; `][` is one token."""
    texts = [*_answers([*range(1, 10), *range(50, 101)]), "[a][b][c]", "[/INST][a]"]
    tokenizer = _byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert _pieces(tokenizer, " > [55]\n") == ["Ġ>", "Ġ[", "55", "]", "Ċ"]
    assert _pieces(tokenizer, " > [12]\n") == ["Ġ>", "Ġ[", "1", "2", "]", "Ċ"]
    assert _pieces(tokenizer, "][")[0] == "]["
    return tokenizer


def merges_everything() -> PreTrainedTokenizerFast:
    """Merges across spaces and punctuation: the end of a template runs into whatever follows it."""
    texts = ["ASSISTANT: Step 1: [1]", "ASSISTANT: [1] > [2]", "ASSISTANT: Sure", "ASSISTANT:"]
    tokenizer = _byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    assert _pieces(tokenizer, "ASSISTANT: Step 1:")[0].startswith("ASSISTANT:Ġ")
    return tokenizer


def folding(normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    """Finds its control tokens in the normalised text, `<tool>` among them."""
    tokenizer = _byte_level([], _split(QWEN2), normalizer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True, special=False)])
    return tokenizer


def unknown_words(unk_token: str = "<unk>", eos_token: str = "</s>") -> PreTrainedTokenizerFast:
    """Neither bytes nor a whole alphabet: what was not in its training text is `unk_token`."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = list(dict.fromkeys([unk_token, eos_token, *SPECIAL]))
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*_prose(), *_answers(range(10))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk_token, eos_token=eos_token)


def looks_ahead() -> PreTrainedTokenizerFast:
    """`aaaa` is one token only where `b!` follows: without it, the same characters take more tokens."""
    merges = [("a", "a"), ("aa", "aa")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "aa", "aaaa"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _split(r"a+b!|.|\n")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    assert _pieces(fast, "aaaab!") == ["aaaa", "b", "!"]
    assert _pieces(fast, "aaaa") == ["a"] * 4
    return fast


# -- SentencePiece ----------------------------------------------------------------------------------------------


def _sentencepiece(texts: Iterable[str], split_digits: bool, vocab_size: int = 500) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and no normalisation, as Llama 2, Mistral and Gemma have it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in [*_prose(), *texts] for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=split_digits,
        num_threads=1,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tokenizer.model").write_bytes(model.getvalue())
        tokenizer = LlamaTokenizer.from_pretrained(directory)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in ("Step 1: [4]\nStep 2: [4] > [37]", "Fleas – élan 😀"):
        assert _pieces(tokenizer, text) == processor.encode(text, out_type=str)  # the conversion is faithful
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in SPECIAL if t not in ("<s>", "</s>")]})
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in NOT_SPECIAL])
    return tokenizer


def spm() -> PreTrainedTokenizerFast:
    """Digits one by one, a bracket merges with the space before it, a line end is a byte."""
    tokenizer = _sentencepiece(_answers(range(1, 10)), split_digits=True)
    assert _pieces(tokenizer, "x > [12]\n")[1:] == ["▁>", "▁[", "1", "2", "]", "<0x0A>"]
    return tokenizer


def spm_numbers() -> PreTrainedTokenizerFast:
    """Numbers are one token, without their brackets: those had no numbers in them in training."""
    numbers = [f"{'x'}{i}" for i in range(10, 101) for _ in range(3)]
    letters = [line for letter in "abcdefgh" for line in _answers(letter)]
    tokenizer = _sentencepiece([*letters, *numbers], split_digits=False, vocab_size=700)
    merged = [i for i in range(10, 101) if _pieces(tokenizer, f"x > [{i}]\n")[2:4] == ["▁[", str(i)]]
    assert len(merged) > 20
    assert _pieces(tokenizer, "x > [5]\n")[2:] == ["▁[", "5", "]", "<0x0A>"]
    return tokenizer


def spm_brackets() -> PreTrainedTokenizerFast:
    """A frequent number is one token with its brackets."""
    tokenizer = _sentencepiece(_answers(list(range(1, 6)) * 5), split_digits=False)
    assert "▁[4]" in _pieces(tokenizer, "x > [4]\n")
    assert "▁[" in _pieces(tokenizer, "x > [97]\n")
    return tokenizer


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- chat templates ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A chat template, and what it is expected to write.

    Attributes:
        jinja: the template.
        prompt: from system and user message to the whole prompt (without the spaces that end it).
        end_of_turn: what ends an answer.
        lead: what stands between prompt and answer.
    """

    jinja: str
    prompt: Callable[[str, str], str]
    end_of_turn: str
    lead: str = ""


_ROLES = "{% for m in messages %}"
_NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"

TEMPLATES = {
    "chatml": Template(
        _ROLES + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        lambda system, user: (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        ),
        "<|im_end|>",
    ),
    "llama3": Template(
        _ROLES
        + "{% if loop.first %}<|begin_of_text|>{% endif %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        lambda system, user: (
            f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "<|eot_id|>",
    ),
    # No system role: an error.
    "gemma": Template(
        "<s>" + _NO_SYSTEM + _ROLES + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        lambda system, user: f"<s><start_of_turn>user\n{system}\n\n{user}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    # No system role: silence.
    "drops_system": Template(
        _ROLES + "{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        lambda system, user: f"<|im_start|>user\n{system}\n\n{user}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    # Thinks unless told not to.
    "qwen3": Template(
        _ROLES + "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        lambda system, user: (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
        "<|im_end|>",
    ),
    # Another switch, and earlier answers are written without what opens a new one.
    "deepseek": Template(
        _ROLES + "{% if m['role'] == 'assistant' %}ASSISTANT {{ m['content'] }}</s>{% else %}{{ m['content'] }}\n\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT"
        "{% if thinking is defined and not thinking %}</think>{% else %}<think>{% endif %}{% endif %}",
        lambda system, user: f"{system}\n\n{user}\n\nASSISTANT</think>",
        "</s>",
    ),
    # The prompt ends with a space.
    "vicuna": Template(
        _ROLES + "{% if m['role'] == 'system' %}{{ m['content'] }}\n\n{% else %}{{ m['role'] | upper }}: "
        "{{ m['content'] }}{{ '</s>' if m['role'] == 'assistant' else '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        lambda system, user: f"{system}\n\nUSER: {user}\nASSISTANT:",
        "</s>",
        lead=" ",
    ),
    # The answer begins with a space that is not the prompt's.
    "mistral": Template(
        "<s>" + _NO_SYSTEM + _ROLES + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
        lambda system, user: f"<s>[INST] {system}\n\n{user} [/INST]",
        "</s>",
        lead=" ",
    ),
}


# -- both together ----------------------------------------------------------------------------------------------

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    function.__name__: function for function in (smollm2, qwen2, llama3, gpt2, spm, spm_numbers)
}


@cache
def trained(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of that name, which must not be changed."""
    return TOKENIZERS[name]()


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None) -> PreTrainedTokenizerFast:
    """A copy with a chat template: one of `TEMPLATES`, or the template itself."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATES[template].jinja if template in TEMPLATES else template
    return tokenizer


@cache
def chat_tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    """One of `TOKENIZERS` with one of `TEMPLATES`, which must not be changed."""
    return with_template(trained(name), template)
