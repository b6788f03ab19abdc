"""The objects of the standard library that have a docstring of their own, under their public names.

`fresh_entries` looks at them in a new interpreter, which runs this file: it may import the standard library only.
"""

import builtins
import functools
import importlib
import inspect
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MIN_WORDS = 5
MAX_SIGNATURE = 100  # characters
_PROPERTIES = (property, functools.cached_property, types.GetSetDescriptorType)


@dataclass(frozen=True)
class Entry:
    """A documented object: `json.dumps`, its signature (empty where Python gives none) and its docstring, cleaned."""

    name: str
    signature: str
    doc: str


def fresh_entries(modules: Iterable[str]) -> list[Entry]:
    """`entries` before any other import: libraries put functions of their own into `logging` and other modules.

    The new interpreter has its docstrings, also where this one was started with -OO: -I ignores the environment.
    """
    command = [sys.executable, "-I", "-S", "-X", "utf8", __file__, *modules]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return [Entry(*entry) for entry in json.loads(done.stdout)]


def entries(modules: Iterable[str]) -> dict[str, Entry]:
    """By name: the modules, what they offer, and the members of their classes.

    An object reachable under several names is listed once: under the first module that offers it, and at module
    level rather than as a method (`random.choice`). Modules this Python was built without are named on stderr.
    """
    loaded = _load(modules)
    found: dict[str, Entry] = {}
    seen: set[int] = set()
    classes: dict[type, str] = {}

    def add(name: str, value: Any, inherited: Iterable[Any] = ()) -> None:
        if id(_identity(value)) in seen:
            return
        seen.add(id(_identity(value)))
        doc = own_doc(value, inherited)
        if doc:
            found[name] = Entry(name, signature(value), doc)
        if isinstance(value, type):
            classes[value] = name

    for module_name, module in loaded.items():
        add(module_name, module)
        prefix = "" if module is builtins else f"{module_name}."
        for name, value in _public(_offered(module)):
            add(prefix + name, value)
    queue = list(classes)
    for owner in queue:
        listed_bases = [base for base in owner.__mro__[1:] if base in classes]
        for name, value in _public(_members(owner, listed_bases)):
            if inspect.isroutine(value) or isinstance(value, (*_PROPERTIES, type)):
                add(f"{classes[owner]}.{name}", value, (getattr(base, name, None) for base in listed_bases))
            if isinstance(value, type) and value in classes and value not in queue:
                queue.append(value)
    return found


def own_doc(value: Any, inherited: Iterable[Any] = ()) -> str:
    """The docstring, cleaned, unless it is trivial, generated, or that of the object's type or bases."""
    doc = getattr(value, "__doc__", None)
    bases = value.__mro__[1:] if isinstance(value, type) else (type(value), *inherited)
    if not isinstance(doc, str) or doc in {getattr(base, "__doc__", None) for base in bases}:
        return ""
    doc = inspect.cleandoc(doc)
    generated = isinstance(value, type) and doc.startswith(f"{value.__name__}(") and "\n" not in doc
    return "" if generated or len(doc.split()) < MIN_WORDS else doc


def signature(value: Any) -> str:
    """`(obj, *, indent=None)`: without annotations, with simple defaults only, so that it is the same everywhere."""
    if not (inspect.isroutine(value) or isinstance(value, type)):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError, AttributeError):  # the last: CPython 3.13 at select.poll.register's default
        return ""
    plain = [
        p.replace(annotation=p.empty, default=p.default if _is_simple(p.default) else ...)
        for p in parameters
        if p.name not in ("self", "cls")
    ]
    written = str(inspect.Signature(plain)).replace("Ellipsis", "...")
    if len(written) <= MAX_SIGNATURE:
        return written
    return written[: written.rindex(",", 0, MAX_SIGNATURE - 5)] + ", ...)"


def _is_simple(default: Any) -> bool:
    return default is inspect.Parameter.empty or isinstance(default, (type(None), bool, int, float, str, bytes))


def _load(modules: Iterable[str]) -> dict[str, types.ModuleType]:
    loaded, missing = {}, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            try:
                loaded[name] = importlib.import_module(name)
            except ImportError:
                missing.append(name)
    if missing:
        print("pydocs leaves out modules that this Python lacks:", ", ".join(missing), file=sys.stderr)
    return loaded


def _offered(module: types.ModuleType) -> dict[str, Any]:
    """What `__all__` names; where there is none, what the module or its C half defines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(module, "__all__"):
            return {name: getattr(module, name) for name in module.__all__ if hasattr(module, name)}
    root = module.__name__.split(".")[0]
    return {
        name: value
        for name, value in vars(module).items()
        if (getattr(value, "__module__", None) or "").split(".")[0].lstrip("_") == root
    }


def _members(owner: type, listed_bases: Iterable[type]) -> dict[str, Any]:
    """What a class defines, and what it has from bases without a public name, as `pathlib.Path` in Python 3.13."""
    elsewhere = {base for listed in listed_bases for base in listed.__mro__}
    members: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if base not in elsewhere:
            members |= vars(base)
    return members


def _public(names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """In the alphabet's order, an object's own name before its aliases."""
    public = [
        item for item in names.items() if not item[0].startswith("_") and not isinstance(item[1], types.ModuleType)
    ]
    return iter(sorted(public, key=lambda item: (getattr(item[1], "__name__", item[0]) != item[0], item[0])))


def _identity(value: Any) -> Any:
    """What is shared by the bound and the unbound forms of one function."""
    return getattr(value, "__func__", value)


if __name__ == "__main__":
    json.dump([(entry.name, entry.signature, entry.doc) for entry in entries(sys.argv[1:]).values()], sys.stdout)
