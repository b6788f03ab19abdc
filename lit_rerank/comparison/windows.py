"""The windows of a choices file, query by query: whether they slid over the list, and whether they led to a run."""

from collections.abc import Sequence
from itertools import pairwise

from data_modules.choices import ChoicesSource, WindowChoices
from lit_rerank.comparison.systems import System
from lit_rerank.errors import UserError
from lit_rerank.fusion import reciprocal

ROUNDING = 1e-6  # of strengths, in nats


def read_windows(path: str, system: System) -> list[WindowChoices]:
    """What a system's choices file holds.

    Raises:
        UserError: where it is broken, or did not lead to that run.
    """
    windows = list(ChoicesSource(path))
    if not windows:
        raise UserError(f"{path} holds no choices")
    for own in by_query(windows):
        qid = own[0].qid
        if not led_to(own, [docid for docid, _ in system.run.get(qid, [])]):
            raise UserError(
                f"{path} orders the passages of query {qid!r} otherwise than {system.path} does: is it of that run?"
            )
    return windows


def by_query(windows: Sequence[WindowChoices]) -> list[list[WindowChoices]]:
    """The windows of each query, in the order of reading."""
    queries: dict[str, list[WindowChoices]] = {}
    for window in sorted(windows, key=lambda window: window.turn):
        queries.setdefault(window.qid, []).append(window)
    return list(queries.values())


def in_parts(windows: Sequence[WindowChoices]) -> tuple[list[WindowChoices], list[WindowChoices]]:
    """Of a query's windows those that slid over the list, and those that it, or then its best, was dealt into."""
    return [window for window in windows if not window.dealt], [window for window in windows if window.dealt]


def led_to(windows: Sequence[WindowChoices], docids: Sequence[str]) -> bool:
    """Whether a query's windows lead to a run's ranking: what was not reranked stands below.

    The last of sliding windows reaches the top of the list, and nothing moves its passages afterwards. Rounds order all
    by the strengths that explain the windows, of equals any first. After sliding both orders are fused.
    """
    slid, dealt = in_parts(windows)
    if not slid:
        return _in_order_of_strength(dealt, docids)
    order = slid_order(slid)
    if dealt:
        order = _fused(order, dealt)
    top = len({docid for window in dealt or slid[-1:] for docid in window.docids})
    return order[:top] == docids[:top]


def slid_order(windows: Sequence[WindowChoices]) -> list[str]:
    """What sliding windows make of a list, from its top to the end of the first window."""
    order: list[str] = []
    for window in windows:
        ordered = [window.docids[identifier - 1] for identifier in window.permutation]
        order = ordered + [docid for docid in order if docid not in window.docids]
    return order


def _fused(slid: list[str], dealt: Sequence[WindowChoices]) -> list[str]:
    """The order of sliding windows, and that of its best by what they were then dealt into; empty where these are of
    others."""
    from lit_rerank.rounds import by_strength

    read = {docid for window in dealt for docid in window.docids}
    best = slid[: len(read)]
    if set(best) != read or any(window.logps is None for window in dealt):
        return []
    return reciprocal([best, [best[i] for i in by_strength(_strengths(dealt, best))]])


def _in_order_of_strength(windows: Sequence[WindowChoices], docids: Sequence[str]) -> bool:
    if any(window.logps is None or not set(docids) >= set(window.docids) for window in windows):
        return False
    found = _strengths(windows, docids)
    ordered = [found[rank] for rank in sorted(found)]
    return max(found) == len(found) - 1 and all(a >= b - ROUNDING for a, b in pairwise(ordered))


def _strengths(windows: Sequence[WindowChoices], docids: Sequence[str]) -> dict[int, float]:
    """Of each passage that the windows hold, by its place in a list."""
    from lit_rerank.rounds import strengths

    place = {docid: number for number, docid in enumerate(docids)}
    return strengths(
        [{place[w.docids[i - 1]]: logp for i, logp in zip(w.permutation, w.logps or (), strict=True)} for w in windows]
    )
