"""Configs: whatever a file says, train.py takes it or ends with one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lit_rerank.cli import in_one_line, train
from lit_rerank.config_files import check_config
from tests.fuzz.inputs import FUZZED, fuzz, mangled, mutated, survives
from tests.training import CONFIGS

FRAGMENTS = ("trainer/default", "model/sft", "backbone/lora", "data/permutations")
MODEL = {
    "model": {"init_args": {"backbone": {"model": "models/none"}, "prompt": {"format": "chain", "sanitise": True}}}
}


def whole() -> dict[str, Any]:
    """The fragments of an ordinary run as one config."""
    config: dict[str, Any] = {}
    for part in (*(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in FRAGMENTS), MODEL):
        _merge(config, part)
    return config


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


GOOD = whole()
TEXT = yaml.safe_dump(GOOD)
words = st.sampled_from(
    [
        "&a",
        "*a",
        "!!python/object:x.y",
        "!!int x",
        "!!binary x",
        "<<: *a",
        "? [a]",
        "%YAML 9",
        "---",
        "...",
        "{",
        "[",
        "|",
        "\t",
    ]
)


@st.composite
def edited(draw: st.DrawFn) -> str:
    """Text with signs of YAML put in."""
    text = TEXT
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        text = f"{text[:place]}{draw(words)}{text[place:]}"
    return text


def dump(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")


@fuzz(150)
@given(content=st.one_of(edited().map(str.encode), mangled(TEXT.encode()), mutated(GOOD).map(dump)))
def test_files_are_settings_or_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    survives("config files", lambda: check_config(tmp_path / "bad.yaml"))


@fuzz(25)
@given(content=st.one_of(mutated(GOOD).map(dump), edited().map(str.encode), mangled(TEXT.encode())))
def test_parsed_or_refused_in_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FUZZED["configs"] += 1
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        train(["fit", "--config", str(tmp_path / "bad.yaml"), "--print_config"])
    one_line(stopped.value.code)
    capsys.readouterr()


@fuzz(25)
@given(config=mutated({part: GOOD[part] for part in ("model", "data")}))
def test_instantiated_or_refused_in_one_line(config: Any, tmp_path: Path) -> None:
    """Model and data, whose sources are absent here: nothing gets further than that."""
    FUZZED["configs"] += 1
    (tmp_path / "bad.yaml").write_bytes(dump(config))
    with pytest.raises(SystemExit) as stopped:
        train(["fit", "--config", str(tmp_path / "bad.yaml"), f"--trainer.default_root_dir={tmp_path}"])
    assert stopped.value.code
    one_line(stopped.value.code)


def one_line(said: Any) -> None:
    """What the command says at its end: nothing, or an error."""
    if said:
        assert str(said).startswith("error: "), said
        assert "\n" not in str(said)


def test_in_one_line_lets_faults_of_the_program_through() -> None:
    with pytest.raises(ZeroDivisionError):
        in_one_line(lambda: 1 // 0)
