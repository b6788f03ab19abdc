"""Where a Java is that can run Lucene."""

import os
import re
import subprocess
import sys
from pathlib import Path

from data_modules.files import user_path
from lit_rerank.errors import UserError

OLDEST = 21
MODULE = "jdk.incubator.vector"
JVMS = "/Library/Java/JavaVirtualMachines/*/Contents/Home" if sys.platform == "darwin" else "/usr/lib/jvm/*"
LIBRARY = Path("lib", "server", "libjvm.dylib" if sys.platform == "darwin" else "libjvm.so")


def find_java(jvms: str = JVMS) -> Path:
    """The home of a JDK of version 21 or newer with `jdk.incubator.vector`.

    `JAVA_HOME` comes first, then the system's, newest first; what is too old or no Java at all is passed over.

    Args:
        jvms: where the system keeps its JDKs: an absolute pattern, each match the home of one.

    Raises:
        UserError: where there is none, with what was found instead.
    """
    named = os.environ.get("JAVA_HOME")
    # Links, such as the ones to a default, are the same JDK once more.
    homes = sorted({path.resolve() for path in Path("/").glob(jvms.lstrip("/"))})
    seen = [(home, modules) for home in homes if (modules := _modules(home))]
    seen.sort(key=lambda java: _version(java[1]), reverse=True)
    if named:
        seen.insert(0, (user_path(named), _modules(user_path(named))))
    for home, modules in seen:
        if _version(modules) >= OLDEST and MODULE in modules and (home / LIBRARY).exists():
            return home
    raise UserError(
        f"Pyserini needs a JDK of version {OLDEST} or newer with {MODULE}; found {_described(seen)} (looked in "
        f"JAVA_HOME and {jvms}). Install one, such as Temurin {OLDEST}, or set JAVA_HOME to where it is"
    )


def _described(seen: list[tuple[Path, dict[str, int]]]) -> str:
    """What was found, in a few words."""

    def one(home: Path, modules: dict[str, int]) -> str:
        if not modules:
            return f"no Java in {home}"
        if _version(modules) < OLDEST:
            return f"Java {_version(modules)} in {home}"
        return f"{home} without " + (MODULE if MODULE not in modules else str(LIBRARY))

    return ", ".join(one(home, modules) for home, modules in seen) or "none"


def _version(modules: dict[str, int]) -> int:
    return modules.get("java.base", 0)


def _modules(home: Path) -> dict[str, int]:
    """The modules of a JDK with its version: told by its `release` file, else by itself; nothing where it is none."""
    release = home / "release"
    text = release.read_text(errors="replace") if release.is_file() else ""
    version = re.search(r'^JAVA_VERSION="(\d+)', text, re.MULTILINE)
    names = re.search(r'^MODULES="([^"]*)"', text, re.MULTILINE)
    if version and names:
        return dict.fromkeys(names[1].split(), int(version[1]))
    try:
        command = [str(home / "bin" / "java"), "--list-modules"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {name: int(number) for name, number in re.findall(r"^([\w.]+)@(\d+)", said, re.MULTILINE)}
