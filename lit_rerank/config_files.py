"""Config files, checked first: jsonargparse names neither file nor line, and does not end with every one."""

from pathlib import Path
from typing import TYPE_CHECKING

from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from yaml import Node

UNUSABLE = (ValueError, TypeError, AttributeError, KeyError, OverflowError)  # what `!!int x` and its like raise
MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # keys, values and lists, those that an alias (*name) repeats counted again


def check_config(file: Path) -> None:
    """Raise a UserError where a file holds no settings: a YAML mapping of reasonable size."""
    import yaml

    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file}: has more than {MAX_BYTES >> 20} MiB, which no config has")
    try:
        root = yaml.compose(file.read_bytes().decode("utf-8"), yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{file}: must hold settings (key: value), not {_kind(root)}")
        if _values(root, {}, file) > MAX_VALUES:
            raise UserError(f"{file}: holds more than {MAX_VALUES:,} values, once its aliases are written out")
        yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{place}: not valid YAML: {reason}") from error
    except UnicodeDecodeError:
        raise UserError(f"{file}: not valid YAML: not UTF-8") from None
    except RecursionError:
        raise UserError(f"{file}: not usable YAML: nested too deeply") from None
    except UserError:
        raise
    except UNUSABLE as error:
        raise UserError(f"{file}: not usable YAML: {' '.join(str(error).split())}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; settings may stand where a path is asked, and be too long for one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _kind(root: "Node | None") -> str:
    return {"SequenceNode": "a list", "ScalarNode": "a single value"}.get(type(root).__name__, "nothing")


def _values(node: "Node", known: dict[int, int], file: Path) -> int:
    """How many values a node stands for; `known` has those of nodes met before, 0 while they are being counted."""
    if known.get(id(node)) == 0:
        raise UserError(f"{file}:{node.start_mark.line + 1}: not usable YAML: it holds itself")
    if id(node) not in known:
        known[id(node)] = 0
        within = node.value if isinstance(node.value, list) else []
        parts = [part for item in within for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(part, known, file) for part in parts)
    return known[id(node)]
