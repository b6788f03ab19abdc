"""The ways to decode, by name.

What needs torch is imported by the functions that use it: commands read the names alone.
"""

from typing import TYPE_CHECKING, Literal, get_args

from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_rerank.decoder import Decoder
    from lit_rerank.encoding import WindowEncoder
    from lit_rerank.reading import Reading

How = Literal["chain", "direct", "first", "likelihood", "generate"]
MAX_BATCH_TOKENS = 20_000  # are decoded at a time


def open_decoder(
    how: How | None, model: "PreTrainedModel", encoder: "WindowEncoder", max_batch_tokens: int = MAX_BATCH_TOKENS
) -> "Decoder":
    """The decoder called `how`; None: `chain` or `direct`, as the encoder's format is.

    Raises:
        UserError: if there is none, or the model or format does not go with it.
    """
    from lit_rerank.scoring import check_packable

    decoder = decoder_class(how, encoder.format.name)
    if how != "generate":
        check_packable(model)
    return decoder(model, encoder, max_batch_tokens)


def fit(how: How | None, reading: "Reading") -> How | None:
    """The way to decode that goes with how lists are read.

    Raises:
        UserError: if `how` does not.
    """
    from lit_rerank.reading import Rounds, SlidingWindow

    if isinstance(reading, SlidingWindow):
        return how
    alone = isinstance(reading, Rounds)  # a stride beside them leaves choices to make
    if how in ("likelihood", "generate") or (alone and how not in (None, "first")):
        raise UserError(
            f"{reading.rounds} rounds are asked for, or kept by the adapter: they go by the scores of first choices, "
            f"which decode {how} does not give. Leave it out, or name a window alone to let it slide"
        )
    return "first" if alone else how


def decoder_class(how: How | None, form: str) -> "type[Decoder]":
    """The class behind a name, for prompts that ask for a format."""
    from lit_rerank.decoding import First, Stepwise
    from lit_rerank.generation import Generate
    from lit_rerank.likelihood import QueryLikelihood

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
