"""Several sides of a measurement, each in a process of its own, taking turns."""

import ctypes
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from data_modules.files import put_in_place

if TYPE_CHECKING:
    from data_modules.sources import TeacherWindowsSource

MEGABYTE = 2**20

# What one side does in a round, and how many bytes its process held when the model was loaded and nothing had run.
Work = tuple[Callable[[int], object], int]


@dataclass(frozen=True)
class Turn:
    """What one side took in one round: seconds, and memory at its peak (bytes above the loaded model)."""

    seconds: float
    memory: int


class Side:
    """A process that waits for its turns; `prepare` makes it ready, in the process."""

    def __init__(self, name: str, prepare: Callable[[], Work]) -> None:
        print(f"getting ready: {name}", flush=True)
        self.name = name
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare), name=name, daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def turn(self, number: int) -> Turn:
        """Let it do the round `number`, and wait for it."""
        self._ours.send(number)
        return Turn(*self._answer())

    def close(self) -> None:
        self._process.terminate()
        self._process.join()

    def _answer(self) -> tuple[float, int]:
        try:
            answer: tuple[float, int] = self._ours.recv()
        except EOFError as error:
            raise RuntimeError(f"the side {self.name!r} has died; its message stands above") from error
        return answer


def take_turns(prepared: Mapping[str, Callable[[], Work]], rounds: int) -> dict[str, list[Turn]]:
    """Every side does every round, round by round. The first of them is done twice: once to warm up."""
    with ExitStack() as stack:
        started = []
        for name, prepare in prepared.items():  # one after the other, so that none disturbs another
            started.append(Side(name, prepare))
            stack.callback(started[-1].close)
        turns: dict[str, list[Turn]] = {side.name: [] for side in started}
        for side in started:
            side.turn(0)
        for number in range(rounds):
            for side in started:
                turns[side.name].append(side.turn(number))
                print(f"round {number + 1}/{rounds}  {side.name}: {turns[side.name][-1].seconds:.2f} s", flush=True)
        return turns


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """The median over rounds of above / below, and how far the rounds lie apart: (largest - smallest) / median."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    middle = median(ratios)
    return middle, (max(ratios) - min(ratios)) / middle


def teachers(data: Path) -> "TeacherWindowsSource":
    """The windows of TREC DL 2019 that teachers ordered; a UserError where their files are not there."""
    from data_modules.sources import TeacherWindowsSource

    return TeacherWindowsSource(data / "dl19.teacher_windows.jsonl.gz", data / "dl19.passages.jsonl.gz")


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with put_in_place(path) as place:
        place.write_text(json.dumps(figures, indent=2) + "\n")


def held() -> int:
    """What this process holds of the memory now, in bytes."""
    return _status("VmRSS")


def _serve(connection: Connection, prepare: Callable[[], Work]) -> None:
    work, loaded = prepare()
    connection.send((0.0, 0))
    while True:
        number = connection.recv()
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
        started = time.perf_counter()
        work(number)
        seconds = time.perf_counter() - started
        peak = _status("VmHWM")
        _give_back()
        connection.send((seconds, peak - loaded))


def _give_back() -> None:
    """What the round has freed goes to the system, that the other sides may have it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status lacks {name}")
