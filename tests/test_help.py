"""--help is quick because it imports little, and true because its cache knows what it depends on."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "peft",
    "bitsandbytes",
    "torchmetrics",
    "scipy",
    "matplotlib",
    "jinja2",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the two commands are made of, so that a test may change it."""
    for name in ("lit_rerank", "data_modules"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(checkout: Path, *words: str, **environment: str) -> tuple[str, set[str]]:
    """What the command prints, and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        cwd=checkout,
        env=os.environ | {"XDG_CACHE_HOME": str(checkout / "cache"), "COLUMNS": "100"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, {name.split(".")[0] for name in re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE)}


@pytest.mark.parametrize("words", [["--help"], ["rerank", "--help"], ["compare", "--help"]])
def test_evaluates_help_imports_nothing_heavy(checkout: Path, words: list[str]) -> None:
    said, imported = run(checkout, "evaluate.py", *words)
    assert "usage: evaluate.py" in said
    assert "jsonargparse" in imported
    assert not imported & HEAVY


def test_trains_help_is_rendered_once_and_again_after_a_change(checkout: Path) -> None:
    first, imported = run(checkout, "train.py", "fit", "--help")
    assert "torch" in imported
    assert "--checkpoint.save_top_k" in first
    again, imported = run(checkout, "train.py", "fit", "--help")
    assert again == first
    assert not imported & HEAVY
    source = checkout / "lit_rerank" / "adapter_checkpoint.py"
    source.write_text(source.read_text().replace("how many of the best are kept", "what is kept"))
    changed, _ = run(checkout, "train.py", "fit", "--help")
    assert "what is kept" in changed


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and a place to note each rendering."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return []


def helped(counted: list[str], *words: str) -> None:
    from lit_rerank.help_cache import with_cached_help

    def render() -> None:
        counted.append(" ".join(words))
        print("usage: ...")
        raise SystemExit(0)

    with pytest.raises(SystemExit) as stopped:
        with_cached_help(words, render)
    assert not stopped.value.code


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["fit", "-h"]])
def test_the_same_help_is_rendered_once(
    counted: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    helped(counted, *words)
    helped(counted, *words)
    assert len(counted) == 1
    assert capsys.readouterr().out == "usage: ...\n" * 2


def test_another_width_is_the_same_help(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("55", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        helped(counted, "fit", "--help")
    assert len(counted) == 1


def test_each_command_keeps_its_own_help(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("train.py", "lit-rerank-train") * 2:
        monkeypatch.setattr(sys, "argv", [program])
        helped(counted, "fit", "--help")
    assert len(counted) == 2


def test_another_version_or_broken_cache_renders_anew(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helped(counted, "fit", "--help")
    site = tmp_path / "site-packages"
    (site / "lightning-2.6.6.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(site))
    helped(counted, "fit", "--help")
    assert len(counted) == 2
    (site / "lightning-2.6.6.dist-info").rename(site / "lightning-2.7.0.dist-info")
    helped(counted, "fit", "--help")
    assert len(counted) == 3
    for file in (tmp_path / "lit-rerank").iterdir():
        file.write_text("{")
    helped(counted, "fit", "--help")
    assert len(counted) == 4


def test_without_a_place_for_the_cache_help_still_comes(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    helped(counted, "--help")
    helped(counted, "--help")
    assert len(counted) == 2


@pytest.mark.parametrize("words", [["fit", "--config", "a.yaml", "--help"], ["--config=a.yaml", "--help"], ["fit"], []])
def test_other_calls_are_left_alone(counted: list[str], words: list[str], tmp_path: Path) -> None:
    helped(counted, *words)
    assert not (tmp_path / "lit-rerank").exists()


def test_the_script_evaluate_does_not_hide_the_package(checkout: Path) -> None:
    """In the process of `python evaluate.py`, wherever a library imports `evaluate`."""
    probe = checkout / "lit_rerank" / "evaluation" / "rerank.py"
    tail = "\nimport sys, evaluate, data_modules.trec\nprint(evaluate.__file__, data_modules.__file__)\n"
    probe.write_text(probe.read_text() + tail)
    (checkout / "packages" / "evaluate").mkdir(parents=True)
    (checkout / "packages" / "evaluate" / "__init__.py").touch()
    said, _ = run(checkout, "evaluate.py", "--help", PYTHONPATH=str(checkout / "packages"))
    assert said.splitlines()[0] == (f"{checkout}/packages/evaluate/__init__.py {checkout}/data_modules/__init__.py")


@pytest.mark.parametrize(("script", "command"), [("train.py", "fit"), ("evaluate.py", "rerank")])
def test_completion_scripts_are_made_and_complete(checkout: Path, script: str, command: str) -> None:
    said, _ = run(checkout, script, "--print_completion", "shtab-bash")
    file = checkout / "completion.bash"
    file.write_text(said)
    subprocess.run(["bash", "-n", str(file)], check=True)
    function = re.findall(r"^complete .*-F (\S+) ", said, re.MULTILINE)[0]
    ask = f'source {file}; COMP_WORDS=({script} {command[:2]}); COMP_CWORD=1; {function}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [command]


def test_who_has_read_enough_may_close_the_pipe() -> None:
    code = "from lit_rerank.cli import in_one_line; in_one_line(lambda: [print('x' * 999) for _ in range(99999)])"
    piped = f'"{sys.executable}" -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (141, "")
