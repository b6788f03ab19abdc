"""The wheel holds both packages, the commands and the licence, and nothing else."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lit_rerank", "data_modules")
COMMANDS = ("lit-rerank-train", "lit-rerank-eval")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy, so that no leftover of an earlier build gets in and none is left."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "tests", "scripts", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "evaluate.py"):  # must stay out, whether or not the project has them
        (tree / name).write_text("")
    (tree / "models").mkdir()
    (tree / "models" / "__init__.py").write_text("")
    out = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, tree, cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"lit_rerank-0.1.0.dist-info/{name}").decode()


def test_wheel_holds_all_modules_of_both_packages(wheel: Path) -> None:
    modules = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    missing = modules - names_in(wheel)
    assert modules
    assert not missing, "a folder without __init__.py is left out of the wheel"


def test_wheel_holds_the_data_files(wheel: Path) -> None:
    folder = ROOT / "data_modules" / "pydocs"
    files = {str(file.relative_to(ROOT)) for file in folder.iterdir() if file.suffix in (".txt", ".tsv", ".md")}
    assert len(files) == 8
    assert files <= names_in(wheel)
    assert "lit_rerank/comparison/page.html" in names_in(wheel)


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    top_level = {name.split("/")[0] for name in names_in(wheel)}
    assert top_level == {*PACKAGES, "lit_rerank-0.1.0.dist-info"}


def test_wheel_holds_the_licence(wheel: Path) -> None:
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_metadata(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Name"] == "lit-rerank"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert {"dev", "gguf"} <= set(metadata.get_all("Provides-Extra", []))


def test_console_scripts(wheel: Path) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {
        "lit-rerank-train": "lit_rerank.cli:train",
        "lit-rerank-eval": "lit_rerank.cli:evaluate",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_installed_package_is_the_one_imported(installed: Path, tmp_path: Path, package: str) -> None:
    code = f"import {package}; print(list({package}.__path__)[0])"
    path = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip()
    assert Path(path) == installed / package


def test_installed_collection_is_whole(installed: Path, tmp_path: Path) -> None:
    code = (
        "from data_modules.pydocs import pydocs; print(len(pydocs('all').queries), 'json.dumps' in pydocs().documents)"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)) == "183 True\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_installed_command_prints_its_help(installed: Path, tmp_path: Path, command: str) -> None:
    printed = run(installed / "bin" / command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert command in printed
