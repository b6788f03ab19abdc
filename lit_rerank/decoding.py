"""From windows to permutations: plain greedy generation, read back with tolerance."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from data_modules.records import Window
from lit_rerank.backbone import is_compiled
from lit_rerank.chain import Parsed
from lit_rerank.chat import Ids
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoded:
    """What a model answered to a window, and the permutation read from it."""

    text: str
    parsed: Parsed

    @property
    def permutation(self) -> tuple[int, ...]:
        return self.parsed.permutation


# Whatever the model's own generation_config.json says: a chain repeats itself by design.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": None,
    "min_length": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
}

_ONLY = Decoded("", Parsed((1,)))


class Generator:
    """Greedy `generate` of Hugging Face, batched: windows of like length together, padded on the left.

    Args:
        model: a causal LM.
        encoder: makes the prompts and reads the answers.
        batch_size: windows generated at a time.
    """

    def __init__(self, model: "PreTrainedModel", encoder: WindowEncoder, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        self.model, self.encoder, self.batch_size = model, encoder, batch_size

    def __call__(
        self, windows: Sequence[Window], progress: Callable[[int], object] = lambda count: None
    ) -> list[Decoded]:
        """One answer for each window; `progress` is told how many more are done.

        Raises:
            UserError: if a window exceeds the context.
        """
        answers = {i: _ONLY for i, window in enumerate(windows) if len(window) == 1}  # no choice, no forward
        progress(len(answers))
        prompts = {i: self.encoder.encode_prompt(window) for i, window in enumerate(windows) if i not in answers}
        order = sorted(prompts, key=lambda i: (len(windows[i]), len(prompts[i])), reverse=True)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            texts = self._generate([prompts[i] for i in batch], [len(windows[i]) for i in batch])
            for i, text in zip(batch, texts, strict=True):
                answers[i] = Decoded(text, self.encoder.format.parse(text, len(windows[i])))
            progress(len(batch))
        return [answers[i] for i in range(len(windows))]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Ids], passages: Sequence[int]) -> list[str]:
        """Greedy answers, each at most as long as the longest well-formed one over its number of passages."""
        tokenizer = self.encoder.chat.tokenizer
        end = tokenizer.convert_tokens_to_ids(self.encoder.chat.end_of_turn)
        limits = [self.encoder.completion_length(n) for n in passages]
        longest = max(map(len, prompts))
        ids = torch.tensor([[end] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        training = self.model.training
        self.model.eval()
        # With every token the cache grows: compiled layers would be compiled for each of its lengths.
        uncompiled = torch.compiler.set_stance("force_eager") if is_compiled(self.model) else nullcontext()
        try:
            with uncompiled:
                output = cast(Any, self.model).generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    max_new_tokens=max(limits),
                    **_GREEDY,
                    eos_token_id=end,
                    pad_token_id=end,
                    use_cache=True,
                )
        finally:
            self.model.train(training)
        answers = [ids[:limit] for ids, limit in zip(output[:, longest:].tolist(), limits, strict=True)]
        return [str(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
