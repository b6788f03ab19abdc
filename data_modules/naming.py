"""Queries named in one line."""

from collections.abc import Sequence

MOST_NAMED = 20


def named(qids: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(qids) - MOST_NAMED
    return ", ".join(qids[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
