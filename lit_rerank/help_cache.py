"""`--help` without the wait: a command's help is rendered once, then printed from a file.

To list its options LightningCLI imports torch and Lightning, seconds of work for text that is always the same. What
that text depends on is kept beside it: the sources of this project, the installed packages and their versions, Python.
Where any of it has changed, the help is rendered anew.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

HELP = ("-h", "--help")
PACKAGES = ("lit_rerank", "data_modules")
WIDTH = "120"  # columns, on every terminal


def with_cached_help(words: Sequence[str], run: Callable[[], Any]) -> None:
    """Run a command whose arguments are `words`; a mere `--help` or `<subcommand> --help` may come from the cache."""
    if not words or words[-1] not in HELP or len(words) > 2 or any("=" in word for word in words):
        run()
        return
    file, key = _file(words), _key()
    text = _read(file, key)
    if text is None:
        text = _rendered(run)
        _write(file, key, text)
    print(text, end="")
    sys.exit(0)


def _rendered(run: Callable[[], Any]) -> str:
    """What the command prints; one that fails, or that does not stop after printing, is no help."""
    printed = StringIO()
    os.environ["COLUMNS"] = WIDTH
    try:
        with redirect_stdout(printed):
            run()
    except SystemExit as stopped:
        if not stopped.code:
            return printed.getvalue()
        print(printed.getvalue(), end="")
        raise
    raise RuntimeError("a command that was asked for its help went on")


def _read(file: Path, key: str) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent or broken: rendered anew
        kept = json.loads(file.read_text())
        if kept["key"] == key:
            return str(kept["text"])
    return None


def _write(file: Path, key: str, text: str) -> None:
    with suppress(OSError):  # nowhere to keep it: rendered each time
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({"key": key, "text": text}))
        new.replace(file)


def _file(words: Sequence[str]) -> Path:
    """Where the help is kept: one place for each help of each command of each installation."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-rerank"
    installation = hashlib.sha256(f"{Path(__file__).resolve()}\n{sys.prefix}".encode()).hexdigest()[:12]
    return folder / "-".join((Path(sys.argv[0]).name, *(word.strip("-") for word in words), f"{installation}.json"))


def _key() -> str:
    """A digest of all that the help depends on."""
    digest = hashlib.sha256()
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("JSONARGPARSE_"))
    known = (sys.version, WIDTH, *settings, *_installed())
    digest.update(json.dumps(known).encode())
    here = Path(__file__).resolve().parents[1]
    for file in sorted(file for package in PACKAGES for file in (here / package).rglob("*.py")):
        digest.update(f"\n{file.relative_to(here)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _installed() -> list[str]:
    """Where packages are installed, as the names of their metadata folders: they hold name and version."""
    found = []
    for folder in map(Path, sys.path):
        with suppress(OSError):
            found += [str(entry) for entry in folder.iterdir() if entry.suffix in (".dist-info", ".egg-info")]
    return sorted(found)
