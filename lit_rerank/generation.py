"""Plain greedy generation, read back with tolerance: the baseline of forced-text decoding."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from lit_rerank.chat import Ids
from lit_rerank.decoder import Decoded, Decoder, Prompt

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


class Generate(Decoder):
    """Greedy `generate` of Hugging Face, padded on the left; answers are always whole."""

    def choices(self, n: int, wanted: int) -> int:
        return n

    def decode(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        texts = self._generate([prompt.ids for prompt in prompts], [prompt.n for prompt in prompts])
        parsed = [self.encoder.format.parse(text, prompt.n) for text, prompt in zip(texts, prompts, strict=True)]
        return [
            Decoded(one.permutation, text=text, malformed=one.malformed)
            for text, one in zip(texts, parsed, strict=True)
        ]

    def _generate(self, prompts: Sequence[Ids], passages: Sequence[int]) -> list[str]:
        """Greedy answers, each at most as long as the longest well-formed one over its number of passages."""
        tokenizer = self.encoder.chat.tokenizer
        end = tokenizer.convert_tokens_to_ids(self.encoder.chat.end_of_turn)
        limits = [self.encoder.completion_length(n) for n in passages]
        longest = max(map(len, prompts))
        ids = torch.tensor([[end] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = cast(Any, self.model).generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=max(limits),
            **_GREEDY,
            eos_token_id=end,
            pad_token_id=end,
            use_cache=True,
        )
        answers = [ids[:limit] for ids, limit in zip(output[:, longest:].tolist(), limits, strict=True)]
        return [str(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
