"""A Java is found by what it says of itself."""

import os
from pathlib import Path

import pytest

from data_modules.java import LIBRARY, MODULE, find_java
from lit_rerank.errors import UserError


def jdk(home: Path, version: str, modules: str = f"java.base {MODULE}", library: bool = True) -> Path:
    """A folder that looks like a JDK's."""
    home.mkdir(parents=True)
    (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    if library:
        (home / LIBRARY).parent.mkdir(parents=True)
        (home / LIBRARY).touch()
    return home


def speaking(home: Path, script: str) -> Path:
    """A JDK without a `release` file, whose `java` is a script."""
    jdk(home, "0")
    (home / "release").unlink()
    (home / "bin").mkdir()
    (home / "bin" / "java").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin" / "java").chmod(0o755)
    return home


@pytest.fixture
def jvms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty system folder; JAVA_HOME is not set."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "jvm").mkdir()
    return tmp_path / "jvm"


def found(jvms: Path) -> Path:
    return find_java(f"{jvms}/*")


def test_the_newest_that_suits_is_taken(jvms: Path) -> None:
    jdk(jvms / "a-21", "21.0.2")
    jdk(jvms / "b-100", "100")
    jdk(jvms / "c-17", "17.0.15")
    jdk(jvms / "d-200-without-the-module", "200", "java.base")
    jdk(jvms / "e-300-without-the-library", "300", library=False)
    assert found(jvms) == jvms / "b-100"


def test_java_home_comes_first(jvms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jdk(jvms / "system", "25")
    monkeypatch.setenv("JAVA_HOME", str(jdk(tmp_path / "own", "21")))
    assert found(jvms) == tmp_path / "own"


def test_a_home_of_nobody(jvms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "~nosuchuser/jdk")
    with pytest.raises(UserError, match=r"^~nosuchuser/jdk: "):
        found(jvms)


@pytest.mark.parametrize("version", ["17.0.15", "1.8.0_402", None])
def test_a_java_home_that_does_not_suit_is_passed_over(
    version: str | None, jvms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "own"))
    if version is not None:
        jdk(tmp_path / "own", version)
    jdk(jvms / "system", "21")
    assert found(jvms) == jvms / "system"


def test_without_a_release_file_java_is_asked(jvms: Path) -> None:
    speaking(jvms / "old", f"[ $1 = --list-modules ] && echo java.base@17.0.1 && echo {MODULE}@17.0.1")
    speaking(jvms / "new", f"[ $1 = --list-modules ] && echo java.base@22.0.1 && echo {MODULE}@22.0.1")
    speaking(jvms / "broken", "exit 1")
    assert found(jvms) == jvms / "new"


def test_what_is_no_program_is_no_java(jvms: Path) -> None:
    (speaking(jvms / "odd", "") / "bin" / "java").chmod(0o644)
    with pytest.raises(UserError, match="found none"):
        found(jvms)


@pytest.mark.parametrize(
    ("version", "modules", "library", "said"),
    [
        ("17.0.15", f"java.base {MODULE}", True, "found Java 17 in {home}"),
        ("21", "java.base", True, f"found {{home}} without {MODULE}"),
        ("21", f"java.base {MODULE}", False, f"found {{home}} without {LIBRARY}"),
    ],
)
def test_the_error_tells_what_was_found(version: str, modules: str, library: bool, said: str, jvms: Path) -> None:
    home = jdk(jvms / "only", version, modules, library)
    with pytest.raises(UserError) as raised:
        found(jvms)
    message = str(raised.value)
    assert message.startswith(f"Pyserini needs a JDK of version 21 or newer with {MODULE}; {said.format(home=home)} (")
    assert "set JAVA_HOME" in message
    assert "\n" not in message


def test_the_error_names_a_wrong_java_home(jvms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere/at/all")
    with pytest.raises(UserError, match="found no Java in /nowhere/at/all"):
        found(jvms)


def test_one_of_this_machine() -> None:
    try:
        home = find_java()
    except UserError as error:
        pytest.skip(f"no suitable Java here: {error}")
    assert os.access(home / "bin" / "java", os.X_OK)
    assert (home / LIBRARY).is_file()
