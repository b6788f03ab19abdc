"""Hostile inputs: broken JSON, rows of the right shape with wrong values, mangled bytes; and how many were tried.

`LIT_RERANK_FUZZ=100` tries a hundred times as many as the ordinary tests do.
"""

import copy
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lit_rerank.errors import UserError

FUZZED: Counter[str] = Counter()
TIMES = int(os.environ.get("LIT_RERANK_FUZZ", "1"))

texts = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(codec=None), max_size=6),  # half surrogate pairs among them
    st.sampled_from(
        ["", " ", "\0", "a", "b", "q1", "[1]", "~nobody/x", "nan", "1e999", "\u2028", "\ud800", "x" * 5000]
    ),
)
numbers = st.one_of(
    st.integers(-3, 30),
    st.integers(),
    st.sampled_from([10**9, 2**63, -(2**63) - 1, 10**400, 10**4299]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)


def fuzz(examples: int) -> Any:
    """So many examples, in their own time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples * TIMES, deadline=None, suppress_health_check=slow)


def values(names: list[str]) -> st.SearchStrategy[Any]:
    """JSON of any shape, whose objects tend to have fields of these names."""
    keys = st.one_of(st.sampled_from(names), texts) if names else texts
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
        max_leaves=8,
    )


def field_names(value: Any) -> list[str]:
    """The names of all fields of a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [*(value if isinstance(value, dict) else []), *(name for item in inner for name in field_names(item))]


@st.composite
def mutated(draw: st.DrawFn, good: Any) -> Any:
    """A good value with one to three of its parts replaced, removed or repeated."""
    value = copy.deepcopy(good)
    anything = values(field_names(good))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(anything)
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "remove", "repeat", "rename"])):
            case "replace":
                container[key] = draw(anything)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(draw(st.integers(0, len(container))), copy.deepcopy(container[key]))
            case "rename" if isinstance(container, dict):
                container[draw(texts)] = container.pop(key)
    return value


def _places(value: Any) -> "list[tuple[Any, Any]]":
    """Every (container, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *_places(inner))]


@st.composite
def mangled(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes, cut, overwritten, or with others put in; or others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    start = draw(st.integers(0, len(good)))
    end = draw(st.integers(start, min(len(good), start + 40)))
    return good[:start] + draw(st.binary(max_size=12)) + good[end:]


@st.composite
def lines(draw: st.DrawFn, good: Any) -> list[bytes]:
    """One to four lines: good, with wrong values, or mangled."""

    def line() -> bytes:
        kind = draw(st.sampled_from(["good", "mutated", "mutated", "mangled"]))
        if kind == "mangled":
            return draw(mangled(dumped(good)))
        return dumped(good if kind == "good" else draw(mutated(good)))

    return [line() for _ in range(draw(st.integers(1, 4)))]


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def written(path: Path, rows: list[bytes]) -> Path:
    """The file that holds these lines, packed where its name says so."""
    content = b"\n".join(rows) + b"\n"
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def survives(what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; None where it raises a UserError of one line. Anything else is the test's failure."""
    FUZZED[what] += 1
    try:
        return read()
    except UserError as error:
        message = str(error)
        assert message
        assert "\n" not in message, message
        return None
