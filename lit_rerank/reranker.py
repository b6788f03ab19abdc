"""The Python API: a model, and how it reads lists."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from data_modules.records import Passage, RankingRecord
from lit_rerank.backbone import DType, context_length, load_for_inference, load_tokenizer
from lit_rerank.chain import FORMATS
from lit_rerank.consistency import Aggregate, SelfConsistent, check_aggregate
from lit_rerank.decoder import MAX_BATCH_TOKENS, Decoder
from lit_rerank.decoding import First, Stepwise
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.generation import Generate
from lit_rerank.likelihood import QueryLikelihood
from lit_rerank.reading import Reading, Rounds, SlidingWindow
from lit_rerank.scoring import check_packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

How = Literal["chain", "direct", "first", "likelihood", "generate"]
SETTINGS_FILE = "lit_rerank.json"
_FITS: dict[type, Callable[[Any], bool]] = {  # by the type of a setting's default
    str: lambda value: value in FORMATS if isinstance(value, str) else False,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool)),
}


def open_decoder(
    how: How | None, model: "PreTrainedModel", encoder: WindowEncoder, max_batch_tokens: int = MAX_BATCH_TOKENS
) -> Decoder:
    """The decoder called `how`; None: `chain` or `direct`, as the encoder's format is.

    Raises:
        UserError: if there is none, or the model or format does not go with it.
    """
    decoder = _decoder_class(how, encoder.format.name)
    if decoder is not Generate:
        check_packable(model)
    return decoder(model, encoder, max_batch_tokens)


def fit(how: How | None, reading: Reading) -> How | None:
    """The way to decode that goes with how lists are read.

    Raises:
        UserError: if `how` does not.
    """
    if not isinstance(reading, Rounds):
        return how
    if how not in (None, "first"):
        raise UserError(f"rounds go by the scores of first choices, which decode {how} does not give: leave it out")
    return "first"


def _decoder_class(how: How | None, form: str) -> type[Decoder]:
    decoders: dict[str, type[Decoder]] = {
        form: Stepwise,
        "first": First,
        "likelihood": QueryLikelihood,
        "generate": Generate,
    }
    if how in ("chain", "direct") and how != form:
        raise UserError(f"decode {how} writes the format {how}, and the prompt asks for {form}: leave one of them out")
    if (how or form) not in decoders:
        raise UserError(f"there is no way to decode {how!r}; choose one of: {', '.join(get_args(How))}")
    return decoders[how or form]


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
        `self_consistency` above 1, each window is read in so many random orders (see `SelfConsistent`). Lists
        are read by a `SlidingWindow` or in `Rounds`: `reading`.

        Raises:
            UserError: if one of the two cannot be loaded or they do not fit.
        """
        reading = reading or SlidingWindow()
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
        _decoder_class(decode, settings.format)
        check_aggregate(aggregate)
        if self_consistency < 1 or max_batch_tokens < 1:
            raise UserError(
                f"self_consistency is {self_consistency}, max_batch_tokens {max_batch_tokens}; each is at least 1"
            )
        if self_consistency > 1 and isinstance(reading, Rounds):
            raise UserError("rounds read lists in random orders already: leave self_consistency out, or add rounds")
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


def save_prompt_settings(settings: PromptSettings, directory: str | Path) -> None:
    """Write how prompts were made beside the weights that were trained on them."""
    (Path(directory) / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def load_prompt_settings(directory: str | Path, otherwise: PromptSettings | None = None) -> PromptSettings:
    """The settings beside a model or adapter; where there are none, `otherwise`, or the defaults."""
    path = settings_file(str(directory))
    if path is None:
        return otherwise or PromptSettings()
    try:
        settings = PromptSettings(**json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not prompt settings: {' '.join(str(error).split())}") from error
    for name, value in asdict(settings).items():
        if not _FITS[type(getattr(PromptSettings, name))](value):
            raise UserError(f"{path}: not prompt settings: {name} is {reprlib.repr(value)}")
    return settings


def settings_file(name: str) -> Path | None:
    """The settings of a directory or Hugging Face id, if it has any."""
    path = Path(name) / SETTINGS_FILE
    if path.is_file() or Path(name).is_dir():
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, SETTINGS_FILE))
    except (OSError, ValueError):  # no such file, id or network; whatever else is wrong shows when weights are loaded
        return None
