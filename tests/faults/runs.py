"""train.py as a process of its own: started, killed, resumed, and compared with one that was left alone."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_rerank.cli import train
from tests.faults.matrix import STEPS, Row

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds until a run counts as hanging
TIMINGS = ("train/tokens", "train/tokens_per_s")  # Lightning logs them after the checkpoint of their step
LAST = "--ckpt_path=last"


class Run:
    """A training under way, with all its processes in a session of their own.

    It is forked from this process, which has imported everything, or (`fresh`) an interpreter of its own runs train.py;
    with two ranks always, since the first starts the second by its own command.

    Args:
        largest: bytes that any of its files may have, as if the disk were full beyond.
    """

    fresh = False

    def __init__(self, folder: Path, args: Sequence[str], largest: int | None = None) -> None:
        self.output = folder / "output.txt"
        self.output.write_text("")
        (root,) = (word.partition("=")[2] for word in args if word.startswith("--trainer.default_root_dir="))
        self.metrics = folder / root / "metrics.jsonl"
        self.before = len(read(self.metrics))
        fresh = self.fresh or "--trainer.devices=2" in args
        self.process = FORK.Process(target=_become, args=(folder, args, self.output, largest, fresh))
        self.process.start()
        self.pid: int = self.process.pid  # type: ignore[assignment]
        while self.process.is_alive() and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def reach(self, steps: int) -> bool:
        """Wait until so many more steps are logged; False if the run has ended before."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if sum("train/loss" in row for row in read(self.metrics)[self.before :]) >= steps:
                return True
            if not self.process.is_alive():
                return False
            time.sleep(0.002)
        raise TimeoutError(f"no step {steps} after {PATIENCE} s:\n{self.said()}")

    def signal(self, number: signal.Signals) -> None:
        """To all its processes, as a scheduler does, or a power cut."""
        os.killpg(self.pid, number)

    def children(self, variable: str = "") -> list[int]:
        """The processes that it has started, of those whose environment holds `variable`."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if _is_child(pid, self.pid, variable)]

    def end(self, patience: float = PATIENCE) -> int:
        """Wait for its end, which must come by itself; the exit code."""
        self.process.join(patience)
        hangs = self.process.is_alive()
        self.kill()
        if hangs:
            raise TimeoutError(f"no end after {patience} s:\n{self.said()}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        """All its processes, and none is left."""
        with contextlib.suppress(ProcessLookupError):
            while True:
                self.signal(signal.SIGKILL)
                self.process.join(0.02)

    def said(self) -> str:
        return self.output.read_text()

    def errors(self) -> list[str]:
        """Its last words: one line, if all is well."""
        return [line for line in self.said().splitlines() if line.startswith(("error:", "Traceback"))]


def _become(folder: Path, args: Sequence[str], output: Path, largest: int | None, fresh: bool) -> None:
    os.setsid()
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = [str(ROOT / "train.py"), *args]
    if fresh:
        os.execv(sys.executable, [sys.executable, *sys.argv])
    train()


def _is_child(pid: int, parent: int, variable: str) -> bool:
    process = Path("/proc") / str(pid)
    try:
        status, command = (process / "stat").read_text(), (process / "cmdline").read_text()
        environment = (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return False
    started_by = int(status.rpartition(")")[2].split()[1])
    return started_by == parent and "tracker" not in command and variable in environment


def read(metrics: Path) -> list[dict[str, Any]]:
    """The lines that are there, whole."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line) for line in lines]


def finish(folder: Path, args: Sequence[str]) -> None:
    """Run to the end."""
    run = Run(folder, args)
    code = run.end()
    assert code == 0, run.said()


def figures(run: Path) -> Iterator[tuple[tuple[int, str], float]]:
    """Every figure that was logged, those of steps that were done again too, by step and name."""
    for row in read(run / "metrics.jsonl"):
        for name, value in row.items():
            if name not in ("step", "epoch", *TIMINGS):
                yield (row["step"], name), value


def difference(one: Path, other: Path) -> float | None:
    """The largest difference in any figure of a run from those of a whole one; 0: equal to the last digit.

    None where one lacks what the other has, or where another adapter or model is left.
    """
    expected = dict(figures(one))
    found = list(figures(other))
    if {key for key, _ in found} != set(expected) or _weights(one).keys() != _weights(other).keys():
        return None
    largest = max(abs(value - expected[key]) for key, value in found)
    return None if largest == 0 and _weights(one) != _weights(other) else largest


def _weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.safetensors")}


def killed_and_resumed(folder: Path, row: Row, seed: int) -> dict[str, Any]:
    """Kill a training `row.kills` times, resuming it each time, and compare it with one that was left alone.

    The moment is a random one within a random step of those that are left, logging, checkpoints and validation
    included; or, one time in six, while the run starts.
    """
    draw = random.Random(f"{seed}/{row.name}")
    whole, broken = f"{row.name}-whole", f"{row.name}-killed"
    finish(folder, row.args(folder, whole))
    args = [*row.args(folder, broken), LAST]
    killed_at: list[int] = []
    while len(killed_at) < row.kills:
        run = Run(folder, args)
        left = STEPS - max((r["step"] + 1 for r in read(run.metrics)), default=0)
        if draw.random() < 1 / 6:
            time.sleep(draw.uniform(0, 5))
        else:
            run.reach(draw.randint(1, max(1, left // (row.kills - len(killed_at)))))
            time.sleep(draw.uniform(0, 0.25))
        if run.process.is_alive():
            run.kill()
            killed_at.append(sum("train/loss" in r for r in read(run.metrics)))
        elif run.end():
            return {"row": row.name, "kills": killed_at, "difference": None, "said": run.errors()}
    finish(folder, args)
    found = difference(folder / whole, folder / broken)
    return {"row": row.name, "kills": killed_at, "difference": found, "figures": len(dict(figures(folder / whole)))}
