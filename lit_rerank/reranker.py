"""Sliding windows over candidate lists, and the Python API."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.backbone import DType, context_length, load_for_inference, load_tokenizer
from lit_rerank.chain import FORMATS, check_size
from lit_rerank.consistency import Aggregate, SelfConsistent, check_aggregate
from lit_rerank.decoder import MAX_BATCH_TOKENS, Decoded, Decoder
from lit_rerank.decoding import First, Stepwise
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.generation import Generate
from lit_rerank.likelihood import QueryLikelihood
from lit_rerank.scoring import check_packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Decode = Callable[[Sequence[Window], Sequence[int]], Sequence[Decoded]]
How = Literal["chain", "direct", "first", "likelihood", "generate"]
SETTINGS_FILE = "lit_rerank.json"
_FITS: dict[type, Callable[[Any], bool]] = {  # by the type of a setting's default
    str: lambda value: value in FORMATS if isinstance(value, str) else False,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool)),
}


@dataclass(frozen=True)
class SlidingWindow:
    """How a list longer than a window is read: from its end to its start, so that the best passages rise.

    Attributes:
        window: passages in one prompt.
        stride: how far the window moves up each time.
        depth: how many candidates, from the top of the list, are reranked; the others keep their order below.
        top_k: how many of the best are asked for, None: all. Their order is the same for any; what ends up below them
            costs no choices (but with self-consistency, where all have a say).
    """

    window: int = 20
    stride: int = 10
    depth: int = 100
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.window < 2 or self.depth < 1 or not 1 <= self.stride < self.window:
            raise UserError(
                f"window {self.window}, stride {self.stride}, depth {self.depth}: a window holds 2 or more passages, "
                "the stride is at least 1 and less than the window, the depth at least 1"
            )
        check_size(self.window)
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or left out for the whole order")

    def spans(self, n: int) -> list[tuple[int, int]]:
        """The windows `[start, end)` over `n` candidates, in the order of reading."""
        end = min(n, self.depth)
        spans = [(max(0, end - self.window), end)]
        while spans[-1][0] > 0:
            end -= self.stride
            spans.append((max(0, end - self.window), end))
        return spans

    def choices(self, n: int) -> list[int]:
        """How many choices of each of the `spans` matter: those that move on to the next window, and the top k."""
        spans = self.spans(n)
        next_ends = [end for _, end in spans[1:]] + [0]
        return [
            max(next_end, min(end, self.top_k or end)) - start
            for (start, end), next_end in zip(spans, next_ends, strict=True)
        ]


@dataclass(frozen=True)
class Ranking:
    """A record's candidates in their new order.

    Attributes:
        order: indices into `record.passages`, best first.
        decoded: the answer to each window, in the order of reading.
        shown: each window's passages, as indices into `record.passages` in the order in which the model read them.
        probabilities: of each in `order`, how probable the choice was that put it there (see `Decoded.logps`); 0 for
            what was not reranked or read from a generated text.
    """

    record: RankingRecord
    order: tuple[int, ...]
    decoded: tuple[Decoded, ...]
    shown: tuple[tuple[int, ...], ...]
    probabilities: tuple[float, ...]

    @property
    def passages(self) -> list[Passage]:
        """Best first. Before the point, a score tells how many passages stand below; after it, how probable the choice
        was, 0.99 for a certain one."""
        n = len(self.order) - 1
        return [
            replace(self.record.passages[i], score=n - rank + 0.99 * probability)
            for rank, (i, probability) in enumerate(zip(self.order, self.probabilities, strict=True))
        ]

    @property
    def run(self) -> list[tuple[str, float]]:
        """(docid, score) as a TREC run wants them."""
        return [(passage.docid, passage.score or 0.0) for passage in self.passages]

    @property
    def malformed(self) -> int:
        """How many windows' answers needed repair."""
        return sum(decoded.malformed for decoded in self.decoded)


def rerank(records: Sequence[RankingRecord], decode: Decode, sliding: SlidingWindow) -> list[Ranking]:
    """Rerank the candidates of every record; the windows of all records advance together."""
    orders = [list(range(len(record.passages))) for record in records]
    probabilities = [[0.0] * len(record.passages) for record in records]
    answers: list[list[Decoded]] = [[] for _ in records]
    read: list[list[tuple[int, ...]]] = [[] for _ in records]
    spans = [sliding.spans(len(record.passages)) for record in records]
    choices = [sliding.choices(len(record.passages)) for record in records]
    for turn in range(max(map(len, spans), default=0)):
        active = [i for i in range(len(records)) if turn < len(spans[i])]
        windows = [Window.of(records[i], orders[i][slice(*spans[i][turn])]) for i in active]
        for i, decoded in zip(active, decode(windows, [choices[i][turn] for i in active]), strict=True):
            start, end = spans[i][turn]
            shown = tuple(orders[i][start:end])
            orders[i][start:end] = [shown[identifier - 1] for identifier in decoded.permutation]
            probabilities[i][start:end] = map(exp, decoded.logps or [-inf] * (end - start))
            answers[i].append(decoded)
            read[i].append(shown)
    return [
        Ranking(record, tuple(order), tuple(decoded), tuple(shown), tuple(probable))
        for record, order, decoded, shown, probable in zip(records, orders, answers, read, probabilities, strict=True)
    ]


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

    def __init__(self, decoder: Decoder | SelfConsistent, sliding: SlidingWindow | None = None) -> None:
        self.decoder = decoder
        self.sliding = sliding or SlidingWindow()

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
        sliding: SlidingWindow | None = None,
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
        `self_consistency` above 1, each window is read in so many random orders (see `SelfConsistent`).

        Raises:
            UserError: if one of the two cannot be loaded or they do not fit.
        """
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
        return cls(decoder if self_consistency == 1 else SelfConsistent(decoder, self_consistency, aggregate), sliding)

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
        (ranking,) = rerank([RankingRecord("query", query, candidates)], self.decoder, self.sliding)
        return ranking.passages


def save_prompt_settings(settings: PromptSettings, directory: str | Path) -> None:
    """Write how prompts were made beside the weights that were trained on them."""
    (Path(directory) / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def load_prompt_settings(directory: str | Path, otherwise: PromptSettings | None = None) -> PromptSettings:
    """The settings beside a model or adapter; where there are none, `otherwise`, or the defaults."""
    path = _settings_file(str(directory))
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


def _settings_file(name: str) -> Path | None:
    """The settings of a directory or Hugging Face id, if it has any."""
    path = Path(name) / SETTINGS_FILE
    if path.is_file() or Path(name).is_dir():
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, SETTINGS_FILE))
    except (OSError, ValueError):  # no such file, id or network; whatever else is wrong shows when weights are loaded
        return None
