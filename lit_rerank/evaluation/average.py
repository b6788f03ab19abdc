"""`evaluate.py average`: adapters that went on from the same one, made one.

What needs torch is imported by the functions that use it: `--help` reads this module's signatures alone.
"""

import json
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.files import new_folder
from lit_rerank.adapter_files import CONFIG, read_weights, write_like
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ALIKE = 0.5  # cosine of what is low in rank; those of unrelated trainings have about 0
LOW_RANK = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
NO_MATTER = {"inference_mode", "lora_dropout", "peft_version"}  # to what an adapter computes
SETS = {"target_modules", "modules_to_save", "exclude_modules"}  # PEFT writes them as lists, in any order


def average_adapters(*adapters: str, out: str) -> None:
    """Write the mean of the weights of adapters that went on from the same one (a model soup, Wortsman et al. 2022).

    Several trainings, as on other data or with other seeds, often make a better model together than each alone, and
    the mean costs no more to use than one of them. LoRA's two factors are averaged each by itself, which is close to
    the mean of their products as long as the adapters are close to each other.

    Args:
        adapters: two or more directories of LoRA adapters of one shape, as PEFT writes them.
        out: the directory to write; how prompts are written and lists read is the first adapter's.
    """
    folders = [Path(adapter) for adapter in adapters]
    if len(folders) < 2:
        raise UserError("there is nothing to average: name two or more adapters")
    target = new_folder(out)
    _check_same_kind(folders)
    weights = [read_weights(folder) for folder in folders]
    for (one, own), (other, others) in combinations(zip(folders, weights, strict=True), 2):
        _check_alike(one, own, other, others)
    _write(mean(weights), folders[0], target)
    print(f"{out}: the mean of {len(folders)} adapters")


def mean(weights: "list[dict[str, Tensor]]") -> "dict[str, Tensor]":
    """The mean of each tensor, computed in float32, in the type of the first."""
    first = weights[0]
    sums = {name: sum((own[name].float() for own in weights[1:]), first[name].float()) for name in first}
    return {name: (total / len(weights)).to(first[name].dtype) for name, total in sums.items()}


def cosine(own: "dict[str, Tensor]", others: "dict[str, Tensor]") -> float:
    """Of all weights that are low in rank, taken as one vector each; nan where one of them is zero."""
    low = [name for name in own if any(part in name for part in LOW_RANK)]

    def product(one: "dict[str, Tensor]", other: "dict[str, Tensor]") -> float:
        return sum(float((one[name].double() * other[name].double()).sum()) for name in low)

    lengths = sqrt(product(own, own) * product(others, others))
    return product(own, others) / lengths if lengths else float("nan")


def _check_same_kind(folders: list[Path]) -> None:
    """Raise a UserError where adapters are of other bases or shapes, or were trained with other prompts."""
    from lit_rerank.as_trained import load_prompt_settings

    (first, config), *others = [(folder, _config(folder)) for folder in folders]
    for folder, other in others:
        unlike = [name for name in sorted(config | other) if config.get(name) != other.get(name)]
        if load_prompt_settings(folder) != load_prompt_settings(first):
            unlike.append("how prompts are written")
        if unlike:
            raise UserError(f"{first} and {folder} cannot be averaged: they differ in {', '.join(unlike)}")


def _check_alike(one: Path, own: "dict[str, Tensor]", other: Path, others: "dict[str, Tensor]") -> None:
    if {name: weight.shape for name, weight in own.items()} != {name: w.shape for name, w in others.items()}:
        raise UserError(f"{one} and {other} cannot be averaged: their weights have other names or shapes")
    if not (found := cosine(own, others)) >= ALIKE:
        raise UserError(
            f"{one} and {other} cannot be averaged: their weights have too little in common (cosine {found:.2f}); have "
            "both gone on from the same adapter?"
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
        kept = {name: value for name, value in found.items() if name not in NO_MATTER}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} holds no adapter: {CONFIG} cannot be read") from error
    if kept.get("peft_type") != "LORA":
        raise UserError(f"{folder} is of the kind {kept.get('peft_type')}; only LoRA adapters can be averaged")
    return {name: sorted(v, key=repr) if name in SETS and isinstance(v, list) else v for name, v in kept.items()}


def _write(weights: "dict[str, Tensor]", like: Path, target: Path) -> None:
    from lit_rerank.whole import written_whole

    with written_whole(target) as unfinished:
        unfinished.mkdir()
        write_like(like, weights, unfinished)
