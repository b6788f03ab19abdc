"""`make check-results`: the shipped adapter is measured again, and its figures are compared with results/expected.json.

Lists of 20 passages, read twice, and the questions; processors differ in how they round, hence the tolerances.
"""

import argparse
import json
from pathlib import Path

from data_modules.sources.base import existing_file
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import report
from scripts.measured import ask, check_measurable, rank_twice
from scripts.recipes import start_anew
from scripts.rows import LISTS, TWICE

EXPECTED = Path("results/expected.json")
ADAPTER = Path("adapters/smollm2-135m-chain")
FOLDER = Path("runs/check-results")
DEPTH = 20
KEPT = ("answer_logprob", "acc_cloze", "bits_per_byte")
TOLERANCE = {"nDCG@10": 0.01, "answer_logprob": 0.005, "acc_cloze": 0.01, "bits_per_byte": 0.003}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=Path, required=True, help="folder of dl21.bm25.top100.jsonl.gz, qrels, ...")
    parser.add_argument("--mmlu", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--write", action="store_true", help="make these figures the expected ones")
    args = parser.parse_args()
    check_measurable(args.lists, args.mmlu)
    expected = None if args.write else read_expected(EXPECTED)
    start_anew(FOLDER)
    found = measured(args.lists, args.mmlu)
    report(found, str(FOLDER / "figures.json"))
    if expected is None:
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text(json.dumps(found, indent=2) + "\n")
    else:
        check(found, expected)


def read_expected(path: Path) -> dict[str, float]:
    """What the figures must be.

    Raises:
        UserError: if it is not there, is no JSON, or is of other figures.
    """
    try:
        expected: dict[str, float] = json.loads(existing_file(path).read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    names = {*(f"{first_stage}.nDCG@10" for first_stage in LISTS), *KEPT}
    if not isinstance(expected, dict) or expected.keys() != names:
        raise UserError(f"{path} must have {', '.join(sorted(names))}: --write makes it anew")
    return expected


def measured(lists: Path, mmlu: Path) -> dict[str, float]:
    """The adapter's figures, each under the name of its list and measure."""
    for first_stage in LISTS:
        rank_twice(ADAPTER, "chain", first_stage, DEPTH, lists, FOLDER)
    ask(ADAPTER, mmlu, FOLDER)
    ranked = {
        f"{first_stage}.nDCG@10": json.loads((FOLDER / f"dl21.{first_stage}.{DEPTH}.{TWICE}.json").read_text())[
            "nDCG@10"
        ]
        for first_stage in LISTS
    }
    kept = json.loads((FOLDER / "mmlu.json").read_text())
    return ranked | {measure: kept[measure] for measure in KEPT}


def check(found: dict[str, float], expected: dict[str, float]) -> None:
    """Raise a UserError that names each figure which is too far from what is expected."""
    wrong = [
        f"{name} is {found[name]:.4f}, expected {value:.4f}, tolerance {tolerance(name)}"
        for name, value in expected.items()
        if not abs(found[name] - value) <= tolerance(name)
    ]
    if wrong:
        raise UserError("; ".join(wrong))
    print(f"all {len(expected)} figures are as in {EXPECTED}")


def tolerance(name: str) -> float:
    return TOLERANCE[name.rpartition(".")[2]]


if __name__ == "__main__":
    in_one_line(main)
