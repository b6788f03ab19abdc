"""A model that is only read for a while: no gradients, no dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards the model is as it was."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards each module trains, or does not, as before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
