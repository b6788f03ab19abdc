"""How lists that are longer than a window are read, by what is asked for."""

from lit_rerank.errors import UserError
from lit_rerank.rounds import Rounds
from lit_rerank.sliding import SlidingWindow
from lit_rerank.twice import Twice

Reading = SlidingWindow | Rounds | Twice
__all__ = ["Reading", "Rounds", "SlidingWindow", "Twice", "named", "open_reading"]

NAMED = ("window", "stride", "rounds")  # what tells one from another; depth and top_k are up to whoever reranks


def open_reading(
    window: int | None = None,
    stride: int | None = None,
    depth: int = 100,
    top_k: int | None = None,
    rounds: int | None = None,
    known: Reading | None = None,
) -> Reading:
    """In `rounds` where they are asked for, by a sliding window where a stride or neither is; with both, in both ways.

    Args:
        stride: by default, where no rounds are asked for, half the window.
        known: the window, where none is named; where neither stride nor rounds are either, these, too.
    """
    known = known or SlidingWindow()
    if window is None and stride is None and rounds is None:
        stride, rounds = getattr(known, "stride", None), getattr(known, "rounds", None)
    window = known.window if window is None else window
    if rounds is None:
        return SlidingWindow(window, window // 2 if stride is None else stride, depth, top_k)
    if top_k is not None:
        raise UserError(
            f"{rounds} rounds are asked for, or kept by the adapter: they score every passage, and nothing is saved by "
            "top_k. Leave it out, or name a window alone to let it slide"
        )
    return Rounds(window, depth, rounds) if stride is None else Twice(window, stride, depth, rounds)


def named(reading: Reading) -> dict[str, int]:
    """What `open_reading` must be told to read lists so."""
    return {name: getattr(reading, name) for name in NAMED if hasattr(reading, name)}
