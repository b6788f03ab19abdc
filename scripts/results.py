"""`make results`: the rows of RESULTS.md, each trained and measured by the commands that it prints.

What is there already is kept, and what was stopped goes on. `make results-chain` makes one row alone, with what it
starts from and what the base knows. Everything lands in runs/results: adapters, runs, metrics, and the table as
summary.json and summary.md.
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from scripts.measured import check_measurable, measure
from scripts.rows import MODEL, ROWS, TRAININGS
from scripts.summary import summarise
from scripts.trained import data_of, replayed, train
from scripts.trecdl_data import OF_DL21, write_data, write_judged

RUNS = Path("runs/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which; by default all")
    for name in ("data", "lists", "cranfield", "mmlu"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {name} (docs/data.md)")
    args = parser.parse_args()
    check_measurable(args.lists, args.mmlu)
    rows = args.rows or list(ROWS)
    with alone(RUNS):
        missing = {file for file in learned_from(rows, RUNS) if not file.exists()}
        if of_dl21 := missing & {RUNS / "data" / f"{name}.jsonl.gz" for name in OF_DL21}:
            write_judged(args.lists, RUNS / "data")
        if missing - of_dl21:
            write_data(MODEL, args.data, args.lists, args.cranfield, RUNS / "data")
        failed: UserError | None = None
        try:
            make(rows, args.lists, args.mmlu)
        except UserError as error:
            failed = error
        summarise(args.lists, RUNS)
    if failed is not None:
        raise failed


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Rows share what they start from and what the base knows, so that two at once would write the same files.

    Raises:
        UserError: if another is at work.
    """
    runs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(runs / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another `make results` is at work in {runs}: wait until it is done") from error


def learned_from(rows: Iterable[str], runs: Path) -> list[Path]:
    """The files that these rows' trainings need, and those that they start from; none for what is not to be trained."""
    trainings = [ROWS[name].training for name in rows]
    names = {name for training in trainings if training is not None for name in still_to_train(training, runs)}
    files = [file for name in names for file in (data_of(name, runs), replayed(name, runs))]
    return [file for file in files if file is not None]


def still_to_train(training: str, runs: Path) -> set[str]:
    """The training, and those before it, unless it is complete: then it needs nothing of them."""
    if (runs / training / "complete").exists():
        return set()
    return {training}.union(*(still_to_train(start, runs) for start in TRAININGS[training].starts))


def make(rows: Iterable[str], lists: Path, mmlu: Path) -> None:
    """Train and measure what is not there yet."""
    for name in rows:
        row = ROWS[name]
        if row.training is not None:
            train(row.training, lists, RUNS)
        measure(name, row, lists, mmlu, RUNS)


if __name__ == "__main__":
    in_one_line(main)
