"""Windows, and encoders on tokenizers of every kind."""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from data_modules.records import Passage, Window
from lit_rerank.chain import get_format
from lit_rerank.chat import Ids
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.preferences import Preference, PreferenceExample
from tests.test_chain import written
from tests.tokenizers import TEMPLATES

# Each kind of tokenizer with the sort of template that it comes with.
PAIRS = [
    ("smollm2", "chatml"),
    ("qwen2", "qwen3"),
    ("llama3", "llama3"),
    ("gpt2", "vicuna"),
    ("spm", "mistral"),
    ("spm_numbers", "gemma"),
]


def window(n: int, permutation: Sequence[int] | None = None) -> Window:
    """Passages with characters of several bytes, so that places in bytes are not those in characters."""
    order = list(range(1, n + 1))
    random.Random(n).shuffle(order)
    passages = tuple(Passage(f"d{i}", f"Fleas – élan 😀 live {i} days.") for i in range(1, n + 1))
    return Window("q7", "how long do fleas live?", passages, tuple(permutation or order))


def encoder(tokenizer: PreTrainedTokenizerFast, form: str = "chain", **limits: int | None) -> WindowEncoder:
    context = limits.pop("context", None)
    return WindowEncoder(tokenizer, PromptSettings(format=form, **limits), context)  # type: ignore[arg-type]


def prompt_text(template: str, form: str, shown: Window) -> str:
    """The prompt as it should read."""
    user = get_format(form).user(shown.query, [passage.text for passage in shown.passages])
    return TEMPLATES[template].prompt(get_format(form).system, user)


def whole_text(template: str, form: str, shown: Window, permutation: Sequence[int] | None = None) -> str:
    """All that training reads: prompt, answer and end of turn."""
    answer = written(form, permutation or shown.permutation or ())
    return prompt_text(template, form, shown) + TEMPLATES[template].lead + answer + TEMPLATES[template].end_of_turn


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> Ids:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def controls(coder: WindowEncoder, ids: Ids) -> list[str]:
    added = coder.chat.tokenizer.added_tokens_decoder
    return [str(added[i]) for i in ids if i in added]


def parts(example: PreferenceExample, preference: Preference) -> tuple[Ids, Ids, tuple[Ids, ...]]:
    """The tokens before a choice, those that are chosen, and those of each rejected one."""
    return example.ids[: preference.start], example.ids[preference.start : preference.end], preference.rejected
