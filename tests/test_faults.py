"""Three of the kills of `make test-faults`."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_training_that_is_killed_three_times_is_as_if_it_never_was(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    words = ["-m", "tests.faults", "--seed", "1", "--kills", "3", "--out", str(out), "sft-qlora-workers-replay"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(out.read_text())
    assert (summary["kills"], summary["kills_survived"]) == (3, 3)
    assert summary["figures_compared"] > 100
