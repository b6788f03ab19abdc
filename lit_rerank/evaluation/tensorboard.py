"""What commands of `evaluate.py` have found, in TensorBoard."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_tensorboard(
    logdir: str | None,
    command: str,
    figures: Mapping[str, Any],
    pictures: "Mapping[str, Figure] | None" = None,
    step: int = 0,
) -> None:
    """Write pictures, and what is a number of the figures, nested or not, as `command/name/name`.

    Without a directory, nothing is written.
    """
    if logdir is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(logdir) as writer:
        for name, value in _numbers(figures, command):
            writer.add_scalar(name, value, step)
        for name, picture in (pictures or {}).items():
            writer.add_figure(f"{command}/{name}", picture, step, close=False)


def _numbers(figures: Mapping[str, Any], above: str) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}/{name}", value
