"""How strongly an adapter acts: from the base model (0) to the adapter as it was trained (1), or beyond.

The weights are W + s (alpha / r) B A: a straight line from the base to the tuned model, along which what was learned
and what is kept can be weighed against each other (WiSE-FT, Wortsman et al. 2022).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

from lit_rerank.backbone import is_adapted
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Ways to initialise an adapter that take its first value out of the base weights.
_INTO_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@contextmanager
def scaled(model: "PreTrainedModel", scale: float) -> Iterator[None]:
    """Inside, the active adapter acts with this strength, of which 1 is the trained one; afterwards as before.

    Raises:
        UserError: if the strength of the adapter is no single number (see `check_scalable`).
    """
    check_scalable(model, scale)
    layers = lora_layers(model)
    before = [dict(layer.scaling) for layer, _ in layers]
    try:
        for layer, name in layers:
            layer.set_scale(name, scale)
        yield
    finally:
        for (layer, _), scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def fold_scale(model: "PreTrainedModel", scale: float) -> None:
    """Multiply the active adapter's own weights, so that stored and loaded again it acts with this strength.

    Raises:
        UserError: as `scaled`.
    """
    import torch

    check_scalable(model, scale)
    with torch.no_grad():
        for layer, name in lora_layers(model):
            embedding = name in layer.lora_embedding_B
            for weight in [layer.lora_embedding_B[name]] if embedding else layer.lora_B[name].parameters():
                weight.mul_(scale)


def check_scalable(model: "PreTrainedModel", scale: float) -> None:
    """Refuse an adapter that does more than add a multiple of B A to the base weights.

    Raises:
        UserError: for such a one, for none, and for a strength that is not finite.
    """
    if not isfinite(scale):
        raise UserError(f"the scale {scale} is not a finite number")
    if not is_adapted(model):
        raise UserError("there is no adapter whose strength could be changed")
    adapted: Any = model
    for name in adapted.active_adapters:
        config = adapted.peft_config[name]
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            raise UserError(f"the adapter is of the kind {kind}: only LoRA's strength can be changed")
        for does, what in (
            (config.modules_to_save, f"replaces whole modules (modules_to_save: {config.modules_to_save})"),
            (config.trainable_token_indices, "replaces embeddings of tokens (trainable_token_indices)"),
            (config.use_dora, "changes the lengths of weights (DoRA)"),
        ):
            if does:
                raise UserError(f"the adapter {what}: its strength cannot be changed")
        if changes := _change_of_base(config):
            raise UserError(f"the adapter {changes}: its strength cannot be changed")


def check_base_is_kept(model: "PreTrainedModel", instead: str) -> None:
    """Refuse an adapter that leaves another model than the base behind where it is turned off.

    Args:
        instead: what to do about it.

    Raises:
        UserError: for such a one.
    """
    adapted: Any = model
    for name in adapted.active_adapters:
        if changes := _change_of_base(adapted.peft_config[name]):
            raise UserError(f"the adapter {changes}: turned off, it does not leave the base model; {instead}")


def _change_of_base(config: Any) -> str | None:
    """What an adapter changes outside itself."""
    bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
    if bias != "none":
        return f"changes biases (bias: {bias})"
    if isinstance(start, str) and start.startswith(_INTO_BASE):
        return f"changes the base weights ({start})"
    return None


def lora_layers(model: "PreTrainedModel") -> list[tuple[Any, str]]:
    """The LoRA layers with the active adapters on them."""
    from peft.tuners.lora import LoraLayer

    return [
        (module, name)
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name in module.active_adapters
        if name in module.scaling
    ]
