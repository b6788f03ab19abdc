"""What a training is told about its optimizer, and about reranking while it validates."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from lit_rerank.errors import UserError
from lit_rerank.reading import Reading, open_reading
from lit_rerank.ways import MAX_BATCH_TOKENS, How, fit


@dataclass
class OptimizerSettings:
    """AdamW with linear warm-up, over all steps of the run.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled.
        warmup: share of all steps.
        schedule: what follows it: decay to zero (`cosine`, `linear`), or none (`constant`).
        betas: decay of the first and second moment.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for name, value, right in (
            ("lr", self.lr, 0 <= self.lr < inf),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < inf),
            ("warmup", self.warmup, 0 <= self.warmup <= 1),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas)),
        ):
            if not right:
                ends = {"warmup": "from 0 to 1, a share of all steps", "betas": "from 0 to below 1"}
                raise UserError(f"optimizer.{name} is {value}; it must be {ends.get(name, '0 or more')}")


def check_weights(**weights: float) -> None:
    """Raise a UserError where a weight is negative or no finite number."""
    for name, weight in weights.items():
        if not 0 <= weight < inf:
            raise UserError(f"{name} is {weight}; it must not be negative, and finite")


@dataclass
class RerankSettings:
    """How validation, test and predict rerank candidates (see `SlidingWindow`, `Rounds`, `Twice` and `Decoder`).

    Attributes:
        decode: `chain` or `direct` (the default: as the prompt's format is), `first`, `likelihood` or `generate`.
        stride: by default, where no rounds are named, half the window.
        rounds: if given, lists are read in so many rounds, by first choices (with a stride, too: the best of what was
            slid over); top_k is refused.
    """

    window: int = 20
    stride: int | None = None
    depth: int = 100
    top_k: int | None = None
    decode: How | None = None
    rounds: int | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    measures: tuple[str, ...] = ("nDCG@10", "RR@10")

    def __post_init__(self) -> None:
        self.how  # noqa: B018 (refuses what makes no sense)

    @property
    def reading(self) -> Reading:
        return open_reading(self.window, self.stride, self.depth, self.top_k, self.rounds)

    @property
    def how(self) -> How | None:
        return fit(self.decode, self.reading)
