"""What all tests share."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lit_rerank.targets import PreferenceTargets


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many hostile inputs were tried; as JSON, too, where LIT_RERANK_FUZZED names a file."""
    from tests.fuzz.inputs import FUZZED

    if FUZZED:
        terminalreporter.write_line(f"inputs fuzzed: {FUZZED.total():,} ({dict(FUZZED.most_common())})")
        if path := os.environ.get("LIT_RERANK_FUZZED"):
            Path(path).write_text(json.dumps({"total": FUZZED.total(), **FUZZED}, indent=2) + "\n")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data, which is not part of the project."""
    path = Path(os.environ.get("LIT_RERANK_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is absent (set LIT_RERANK_DATA to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a Hugging Face directory."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def sft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny model for DPO to start from; it has dropout."""
    from tests.references import save_adapter

    return save_adapter(tiny_model, tmp_path_factory.mktemp("sft"), seed=1)


@pytest.fixture(scope="session")
def targets() -> "PreferenceTargets":
    """Preferences of windows of 2, 3 and 4 passages."""
    from tests.references import preferences

    return preferences("q1")
