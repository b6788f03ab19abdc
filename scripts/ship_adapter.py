"""Make an adapter small enough to be kept with the code: python -m scripts.ship_adapter FROM TO

Its weights become bfloat16, half the size. A README.md in TO stays as it is.
"""

import argparse
import shutil
from pathlib import Path

from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError

WEIGHTS, SETTINGS = "adapter_model.safetensors", ("adapter_config.json", "lit_rerank.json")


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
    from safetensors.torch import load_file, save_file

    missing = [name for name in (WEIGHTS, *SETTINGS) if not (source / name).exists()]
    if missing:
        raise UserError(f"{source} holds no adapter of this project: {' '.join(missing)} is missing")
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(source / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    for name in SETTINGS:
        shutil.copyfile(source / name, target / name)
    return (target / WEIGHTS).stat().st_size


if __name__ == "__main__":
    in_one_line(main)
