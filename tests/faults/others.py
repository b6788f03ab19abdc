"""What else can go wrong: each fault ends with one line that says so, and the resumed run is as if it had not been."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_rerank.sigterm import EXIT_CODE
from tests.faults.matrix import MATRIX, PAIR, Row
from tests.faults.runs import LAST, Run, difference, finish

PLAIN, WORKERS, STREAMED = MATRIX[:3]
Fault = Callable[[Path, str], dict[str, Any]]


def outcome(folder: Path, row: Row, run: str, ended: Run, code: int, right: bool) -> dict[str, Any]:
    """Go on after a fault to the end, and say what became of it."""
    errors = [line[:300] for line in ended.errors()]  # the next run says its own there
    whole = f"{row.name}-whole"
    if not (folder / whole).exists():
        finish(folder, row.args(folder, whole))
    finish(folder, [*row.args(folder, run), LAST])
    found = difference(folder / whole, folder / run)
    survived = right and found == 0 and not any(line.startswith("Traceback") for line in errors)
    return {"exit_code": code, "said": errors, "difference": found, "survived": survived}


def disk_full(folder: Path, name: str) -> dict[str, Any]:
    """No file may be as large as a checkpoint is: the one before stays as it was."""
    run = Run(folder, PLAIN.args(folder, name))
    run.reach(3)
    run.kill()
    last = folder / name / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    full = Run(folder, [*PLAIN.args(folder, name), LAST], largest=len(before) // 2)
    code = full.end()
    intact = last.read_bytes() == before and not list((folder / name).rglob("*.unfinished"))
    right = code == 1 and intact and len(full.errors()) == 1 and "File too large" in full.said()
    return outcome(folder, PLAIN, name, full, code, right)


def checkpoint_truncated(folder: Path, name: str) -> dict[str, Any]:
    """Refused by name; the one before it is used where the last is asked for."""
    run = Run(folder, PLAIN.args(folder, name))
    run.reach(4)
    run.kill()
    last = folder / name / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 2)
    refused = Run(folder, [*PLAIN.args(folder, name), f"--ckpt_path={last}"])
    code = refused.end()
    return outcome(folder, PLAIN, name, refused, code, code == 1 and "only a part" in refused.said())


def data_deleted(folder: Path, name: str) -> dict[str, Any]:
    """The run goes on: map-style data is in memory; a new one says which file is missing."""
    data = folder / "data" / "train.jsonl"
    kept = shutil.copy(data, folder / "kept.jsonl")
    run = Run(folder, WORKERS.args(folder, name))
    try:
        run.reach(2)
        data.unlink()
        code = run.end()
        without = Run(folder, [*WORKERS.args(folder, name), LAST])
        right = without.end() == 1 and "data/train.jsonl" in "".join(without.errors())
    finally:
        shutil.copy(kept, data)
    return outcome(folder, WORKERS, name, without, code, right and code == 0)


def shard_deleted(folder: Path, name: str) -> dict[str, Any]:
    """The run ends and names the shard that it could not read."""
    shards, moved = folder / "data" / "train.shards", folder / "moved.shards"
    run = Run(folder, STREAMED.args(folder, name))
    run.reach(2)
    moved.mkdir()
    for shard in shards.glob("*.parquet"):
        shard.rename(moved / shard.name)
    code = run.end()
    for shard in moved.iterdir():
        shard.rename(shards / shard.name)
    right = code == 1 and "train.shards/" in "".join(run.errors())
    return outcome(folder, STREAMED, name, run, code, right)


def worker_killed(folder: Path, name: str) -> dict[str, Any]:
    run = Run(folder, WORKERS.args(folder, name))
    run.reach(2)
    os.kill(run.children()[0], signal.SIGKILL)
    code = run.end()
    return outcome(folder, WORKERS, name, run, code, code == 1 and "--ckpt_path last" in run.said())


def sigterm(folder: Path, name: str, row: Row = WORKERS) -> dict[str, Any]:
    """All processes get it, those of the loader too."""
    run = Run(folder, row.args(folder, name))
    run.reach(3)
    run.signal(signal.SIGTERM)
    code = run.end()
    return outcome(folder, row, name, run, code, code == EXIT_CODE and "SIGTERM: stopped after" in run.said())


def sigterm_two_ranks(folder: Path, name: str) -> dict[str, Any]:
    return sigterm(folder, name, PAIR)


def rank_killed(folder: Path, name: str) -> dict[str, Any]:
    """Either of two processes; the other ends rather than hang."""
    for rank in (1, 0):
        run = Run(folder, [*PAIR.args(folder, name), LAST])
        run.reach(2)
        other, *_ = run.children("LOCAL_RANK=1")
        os.kill(other if rank else run.pid, signal.SIGKILL)
        run.process.join(60)
        until = time.monotonic() + 60
        while run.process.is_alive() or _lives(other):
            if time.monotonic() > until:
                run.kill()
                return {"survived": False, "said": [f"rank {rank} was killed, and the other hangs"]}
            time.sleep(0.1)
        code = run.end()
    return outcome(folder, PAIR, name, run, code, code != 0)


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


FAULTS: tuple[Fault, ...] = (
    disk_full,
    checkpoint_truncated,
    data_deleted,
    shard_deleted,
    worker_killed,
    sigterm,
    sigterm_two_ranks,
    rank_killed,
)
