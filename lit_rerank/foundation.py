"""What an adapter in training stands on, as its checkpoints tell it: its weights mean nothing on anything else."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rerank.backbone import is_adapted
from lit_rerank.scale import lora_layers
from lit_rerank.sharding import is_partitioned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 64  # values of each weight


def foundation(model: "PreTrainedModel", load_in_4bit: bool) -> dict[str, Any]:
    """What must be as it was where a run is resumed, by the settings that decide it.

    To be asked of a model as it was loaded: what moves, converts or cuts it comes later. Base weights are told apart by
    a digest, wherever they lay; in different dtypes they cannot be compared, and have different names here. Nothing is
    told of a model that is trained whole, whose checkpoint holds all of it, nor of one that ZeRO 3 keeps in pieces.
    """
    if not is_adapted(model) or is_partitioned(model):
        return {}
    adapted: Any = model
    base = (w for name, w in model.named_parameters() if not set(name.split(".")) & adapted.peft_config.keys())
    held = f"{str(model.dtype).removeprefix('torch.')}{', 4 bits' if load_in_4bit else ''}"
    return {
        f"backbone.model ({held})": digest(base),
        "backbone.load_in_4bit": load_in_4bit,
        "backbone.lora.alpha / r": sorted({layer.scaling[name] for layer, name in lora_layers(model)}),
    }


def digest(weights: Iterable[Tensor]) -> str:
    """A hash of some values of each weight, from all over it."""
    found = hashlib.blake2b(digest_size=4)
    for weight in weights:
        values = weight.detach().flatten()
        some = values[:: max(1, len(values) // SAMPLED)].cpu().contiguous()
        found.update(some.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
