"""Fully sharded training (FSDP2): each process keeps a piece of every weight, of its gradient and its optimizer state.

Whole weights are gathered layer by layer where they are read. That takes part of all processes, so that all must read
the same number of rows: `idle` is for one that has nothing to read, `whole` for reading as often as one likes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from lit_rerank.backbone import layers_of, trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.packing import Packed, Packer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def shard(model: "PreTrainedModel", mesh: "DeviceMesh") -> None:
    """Keep only this process's pieces of the weights.

    Raises:
        UserError: if the weights are of 4 bits, which have no pieces.
    """
    if any(hasattr(weight, "quant_state") for weight in model.parameters()):
        raise UserError(
            "FSDP cannot cut 4-bit weights into pieces: set backbone.load_in_4bit to false, or trainer.strategy to ddp"
        )
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def is_partitioned(model: torch.nn.Module) -> bool:
    """Whether DeepSpeed (ZeRO 3) keeps the weights in pieces."""
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


@contextmanager
def whole(model: torch.nn.Module) -> Iterator[None]:
    """Inside, this process has all of the weights and can read without the others; all must enter and leave."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor] | None:
    """The trained weights in one piece, on the CPU, of a model that is sharded; all processes must ask."""
    if not is_sharded(model):
        return None
    trained: dict[str, Any] = trainable_parameters(model)
    return {name: weight.full_tensor().detach().cpu() for name, weight in trained.items()}


def idle(device: torch.device) -> Packed:
    """A row to read where there is nothing to learn: one question about one token."""
    packer = Packer()
    packer.ask(packer.trunk((0,)), 1, 0)
    return packer.pack(device)
