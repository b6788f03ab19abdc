"""Make an adapter small enough to be kept with the code: python -m scripts.ship_adapter FROM TO

Its weights become bfloat16, half the size. A README.md in TO stays as it is.
"""

import argparse
from pathlib import Path

from lit_rerank.adapter_files import CONFIG, WEIGHTS, read_weights, write_like
from lit_rerank.as_trained import SETTINGS_FILE
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="FROM", help="the adapter that a run has left")
    parser.add_argument("target", type=Path, metavar="TO", help="the folder that it is written to")
    args = parser.parse_args()
    print(f"{args.target}: {ship(args.source, args.target) / 1e6:.1f} MB")


def ship(source: Path, target: Path) -> int:
    """Write the adapter anew; the bytes of its weights.

    Raises:
        UserError: if there is none.
    """
    import torch

    missing = [name for name in (CONFIG, SETTINGS_FILE) if not (source / name).exists()]
    if missing:
        raise UserError(f"{source} holds no adapter of this project: {' '.join(missing)} is missing")
    weights = {name: weight.to(torch.bfloat16) for name, weight in read_weights(source).items()}
    target.mkdir(parents=True, exist_ok=True)
    write_like(source, weights, target)
    return (target / WEIGHTS).stat().st_size


if __name__ == "__main__":
    in_one_line(main)
