"""The Python API: a model, and how it reads lists."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_modules.records import Passage, RankingRecord
from lit_rerank.as_trained import load_prompt_settings, load_reading
from lit_rerank.backbone import DType, context_length, load_for_inference, load_tokenizer
from lit_rerank.chain import FORMATS
from lit_rerank.consistency import Aggregate, SelfConsistent, check_aggregate
from lit_rerank.decoder import Decoder
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.reading import Reading, SlidingWindow
from lit_rerank.ways import MAX_BATCH_TOKENS, How, decoder_class, fit, open_decoder


class Reranker:
    """Orders passages for a query with a listwise LLM.

    >>> reranker = Reranker.from_pretrained("models/smollm2-135m-instruct", adapter="runs/dpo/adapter")
    >>> [passage.text for passage in reranker.rank("capital of France", ["Berlin is ...", "Paris is ..."])]
    """

    def __init__(self, decoder: Decoder | SelfConsistent, reading: Reading | None = None) -> None:
        self.decoder = decoder
        self.reading = reading or SlidingWindow()

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        adapter: str | None = None,
        *,
        decode: How | None = None,
        format: str | None = None,
        max_passage_tokens: int | None = None,
        repeat_identifier: bool | None = None,
        sanitise: bool | None = None,
        reading: Reading | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        self_consistency: int = 1,
        aggregate: Aggregate = "kemeny",
        dtype: DType = "auto",
        load_in_4bit: bool = False,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Reranker":
        """Load a model (id or directory) and an adapter.

        `format`, `max_passage_tokens`, `repeat_identifier` and `sanitise` (see `PromptSettings`) are, by default, those
        that the adapter (or the fully fine-tuned model) was trained with; `decode` is, by default, the format. With
        `self_consistency` above 1, each window is read in so many random orders (see `SelfConsistent`). Lists are
        read by a `SlidingWindow`, in `Rounds`, or `Twice`: `reading`, by default what the adapter keeps.

        Raises:
            UserError: if one of the two cannot be loaded or they do not fit.
        """
        reading = reading or load_reading(adapter or model)
        decode = fit(decode, reading)
        asked: dict[str, Any] = {
            "format": format or (decode if decode in FORMATS else None),
            "max_passage_tokens": max_passage_tokens,
            "repeat_identifier": repeat_identifier,
            "sanitise": sanitise,
        }
        settings = replace(
            load_prompt_settings(adapter or model),
            max_length=None,
            **{name: value for name, value in asked.items() if value is not None},
        )
        decoder_class(decode, settings.format)
        check_aggregate(aggregate)
        if self_consistency < 1 or max_batch_tokens < 1:
            raise UserError(
                f"self_consistency is {self_consistency}, max_batch_tokens {max_batch_tokens}; each is at least 1"
            )
        if self_consistency > 1 and not isinstance(reading, SlidingWindow):
            raise UserError(
                f"{reading.rounds} rounds are asked for, or kept by the adapter: they read windows in random orders "
                "already. Leave self_consistency out, or name a window alone to let it slide"
            )
        tokenizer = load_tokenizer(model, trust_remote_code)
        loaded = load_for_inference(
            model,
            adapter,
            load_in_4bit=load_in_4bit,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        encoder = WindowEncoder(tokenizer, settings, context_length(model, trust_remote_code))
        decoder = open_decoder(decode, loaded, encoder, max_batch_tokens)
        return cls(decoder if self_consistency == 1 else SelfConsistent(decoder, self_consistency, aggregate), reading)

    def rank(self, query: str, passages: Sequence[str | Passage]) -> list[Passage]:
        """The passages, best first. Plain strings get their position (from 0) as docid.

        Raises:
            UserError: for an empty query, repeated docids, or a window that exceeds the model's context.
        """
        if isinstance(passages, str) or not all(isinstance(passage, str | Passage) for passage in passages):
            raise UserError("rank takes a list of passages, each a string or a Passage")
        if not passages:
            return []
        candidates = tuple(
            passage if isinstance(passage, Passage) else Passage(str(i), passage) for i, passage in enumerate(passages)
        )
        (ranking,) = self.reading.rerank([RankingRecord("query", query, candidates)], self.decoder)
        return ranking.passages
