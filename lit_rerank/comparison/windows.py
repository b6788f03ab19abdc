"""The windows of a choices file, query by query: whether they slid over the list, and whether they led to a run."""

from collections.abc import Sequence
from itertools import pairwise

from data_modules.choices import ChoicesSource, WindowChoices
from lit_rerank.comparison.systems import System
from lit_rerank.errors import UserError

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


def slid(windows: Sequence[WindowChoices]) -> bool:
    """Whether a query's windows slid: the second then holds passages of the first, and some that are new.

    In rounds, the first two share none, or are of the same passages.
    """
    if len(windows) < 2:
        return False
    first, second = (set(window.docids) for window in windows[:2])
    return not first.isdisjoint(second) and not second <= first


def led_to(windows: Sequence[WindowChoices], docids: Sequence[str]) -> bool:
    """Whether a query's windows lead to a run's ranking: what was not reranked stands below.

    The last of sliding windows reaches the top of the list, and nothing moves its passages afterwards. Rounds order all
    by the strengths that explain the windows, of equals any first.
    """
    top = [windows[-1].docids[identifier - 1] for identifier in windows[-1].permutation]
    on_top = top == docids[: len(top)]
    if slid(windows):
        return on_top
    return (on_top and len(windows) == 1) or _in_order_of_strength(windows, docids)


def _in_order_of_strength(windows: Sequence[WindowChoices], docids: Sequence[str]) -> bool:
    from lit_rerank.reading import strengths

    ranks = {docid: rank for rank, docid in enumerate(docids)}
    if any(window.logps is None or not ranks.keys() >= set(window.docids) for window in windows):
        return False
    found = strengths(
        [{ranks[w.docids[i - 1]]: logp for i, logp in zip(w.permutation, w.logps or (), strict=True)} for w in windows]
    )
    ordered = [found[rank] for rank in sorted(found)]
    return max(found) == len(found) - 1 and all(a >= b - ROUNDING for a, b in pairwise(ordered))
