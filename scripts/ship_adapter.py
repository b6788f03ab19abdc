"""Make an adapter small enough to be kept with the code: python -m scripts.ship_adapter FROM TO

Its weights become bfloat16, half the size. A README.md in TO stays as it is.
"""

import argparse
from pathlib import Path

from lit_rerank.adapter_files import CONFIG, WEIGHTS, read_weights, write_like
from lit_rerank.as_trained import SETTINGS_FILE, load_prompt_settings, reading_as_asked, save_settings
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from lit_rerank.reading import NAMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="FROM", help="the adapter that a run has left")
    parser.add_argument("target", type=Path, metavar="TO", help="the folder that it is written to")
    for name in NAMED:
        parser.add_argument(
            f"--{name}", type=int, help="how its lists are to be read (see rerank); by default all as they were"
        )
    args = parser.parse_args()
    asked = {name: getattr(args, name) for name in NAMED}
    print(f"{args.target}: {ship(args.source, args.target, **asked) / 1e6:.1f} MB")


def ship(
    source: Path, target: Path, window: int | None = None, stride: int | None = None, rounds: int | None = None
) -> int:
    """Write the adapter anew; the bytes of its weights.

    Args:
        window, stride, rounds: how lists are to be read (see `open_reading`); by default as in training's validation.

    Raises:
        UserError: if there is none, or it would be written over.
    """
    import torch

    if source.resolve() == target.resolve():
        raise UserError(f"{target} is what is read: name another folder")
    missing = [name for name in (CONFIG, SETTINGS_FILE) if not (source / name).exists()]
    if missing:
        raise UserError(f"{source} holds no adapter of this project: {' '.join(missing)} is missing")
    weights = {name: weight.to(torch.bfloat16) for name, weight in read_weights(source).items()}
    reading = reading_as_asked(str(source), window, stride, 100, None, rounds)
    target.mkdir(parents=True, exist_ok=True)
    write_like(source, weights, target)
    save_settings(load_prompt_settings(source), reading, target)
    return (target / WEIGHTS).stat().st_size


if __name__ == "__main__":
    in_one_line(main)
