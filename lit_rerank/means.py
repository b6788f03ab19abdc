"""Figures of batches and processes put together."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Means:
    """Weighted means of named figures over batches and processes; not every process needs to know every name."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def add(self, name: str, value: Tensor | float, weight: int) -> None:
        """Add a mean over `weight` things."""
        if weight:
            mean = value.detach().float() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._totals[name] = mean * weight + self._totals.get(name, 0.0)
            self._weights[name] = self._weights.get(name, 0) + weight

    def state(self) -> dict[str, tuple[Tensor, int]]:
        """What has been added on this process since the last `collect`: sum and weight of every figure."""
        return {name: (total.cpu(), self._weights[name]) for name, total in self._totals.items()}

    def set_state(self, state: Mapping[str, tuple[Tensor, int]]) -> None:
        """Go on from where `state` was called."""
        self._totals = {name: total for name, (total, _) in state.items()}
        self._weights = {name: weight for name, (_, weight) in state.items()}

    def collect(self) -> dict[str, tuple[float, int]]:
        """Mean and weight of every figure of all processes, each of which must call this; then all begins anew."""
        own = {name: (total.item(), weight) for name, (total, weight) in self.state().items()}
        self.set_state({})
        parts = gather(own)
        collected = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            totals, weights = zip(*(part[name] for part in parts if name in part), strict=True)
            collected[name] = (sum(totals) / sum(weights), sum(weights))
        return collected


def gather(own: T) -> list[T]:
    """What every process has, by rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts
