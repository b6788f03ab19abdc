"""What an adapter in training stands on, as its checkpoints tell it: its weights mean nothing on anything else."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_rerank.backbone import is_adapted
from lit_rerank.scale import lora_layers
from lit_rerank.sharding import is_partitioned, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 64  # values of each weight


def foundation(model: "PreTrainedModel", load_in_4bit: bool) -> dict[str, Any]:
    """What must be as it was where a run is resumed, by the settings that decide it.

    Weights are told apart by a digest of some of their values, wherever they were loaded from and in whatever dtype.
    Nothing is told of a model that is trained whole, whose checkpoint holds all of it, nor of one in pieces.
    """
    if not is_adapted(model) or is_sharded(model) or is_partitioned(model):
        return {}
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    embedding: Any = model.get_input_embeddings()
    return {
        "backbone.model": digest(w for name, w in frozen.items() if w is embedding.weight or _is_plain(name, w)),
        "backbone.load_in_4bit": load_in_4bit,
        "backbone.lora.alpha / r": sorted({layer.scaling[name] for layer, name in lora_layers(model)}),
        "reference adapter": digest(weight for name, weight in frozen.items() if ".lora_" in name),
    }


def _is_plain(name: str, weight: Tensor) -> bool:
    """Whether a weight is one that quantisation leaves alone, and of no adapter."""
    return weight.ndim == 1 and ".lora_" not in name


def digest(weights: Iterable[Tensor]) -> str:
    """A hash of values from all over each weight, as bfloat16 has them."""
    found = hashlib.blake2b(digest_size=4)
    for weight in weights:
        values = weight.detach().flatten()
        found.update(str(values[:: max(1, len(values) // SAMPLED)].bfloat16().tolist()).encode())
    return found.hexdigest()
