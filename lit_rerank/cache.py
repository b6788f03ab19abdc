"""What a model remembers of a text that it has read: the keys and values of every layer."""

from torch import Tensor, nn


class Cache:
    """Keys and values of one text in every layer, with room for more.

    Args:
        capacity: most tokens that it may ever hold, those of branches included.

    Attributes:
        length: so many tokens are kept; what is written after them is overwritten by the next.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write what follows, (1, heads, tokens, size), in one layer; returns all that this then holds, as views."""
        if layer not in self._layers:
            self._layers[layer] = tuple(x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (key, value))  # type: ignore[assignment]
        end = self.length + key.shape[2]
        for room, new in zip(self._layers[layer], (key, value), strict=True):
            room[:, :, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:, :, :end], values[:, :, :end]
