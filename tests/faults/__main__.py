"""`make test-faults`: trainings are killed at random moments and resumed; what is left is one JSON summary.

python -m tests.faults [--seed N] [--kills N] [--fresh] [--out FILE] [NAME ...]
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.faults.matrix import MATRIX, prepare, rows
from tests.faults.others import FAULTS
from tests.faults.runs import Run, killed_and_resumed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="rows of the matrix, or faults; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/faults.json"), help="the summary")
    parser.add_argument("--kills", type=int, help="of each row, instead of its own number")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for every run: slower")
    options = parser.parse_args()
    Run.fresh = options.fresh
    for module in ("lit_rerank.training_cli", "bitsandbytes", "torchdata.stateful_dataloader"):
        importlib.import_module(module)  # once, for the runs that are forked
    faults = [fault for fault in FAULTS if not options.names or fault.__name__ in options.names]
    unknown = {*options.names} - {row.name for row in MATRIX} - {fault.__name__ for fault in FAULTS}
    if unknown:
        parser.error(f"neither a row nor a fault: {' '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, started = prepare(Path(scratch)), time.monotonic()
        killed = []
        for row in rows(options.names):
            kills = row.kills if options.kills is None else options.kills
            killed.append(killed_and_resumed(folder, replace(row, kills=kills), options.seed))
            print(json.dumps(killed[-1]), flush=True)
        others = {}
        for fault in faults:
            others[fault.__name__] = fault(folder, fault.__name__)
            print(json.dumps({fault.__name__: others[fault.__name__]}), flush=True)
    survived = [row for row in killed if row["difference"] == 0]
    summary = {
        "kills": sum(len(row["kills"]) for row in killed),
        "kills_survived": sum(len(row["kills"]) for row in survived),
        "figures_compared": sum(row.get("figures", 0) for row in killed),
        "faults": len(others),
        "faults_survived": sum(other["survived"] for other in others.values()),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "rows": killed,
        "others": others,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k not in ("rows", "others")}))
    sys.exit(summary["kills"] != summary["kills_survived"] or summary["faults"] != summary["faults_survived"])


if __name__ == "__main__":
    main()
