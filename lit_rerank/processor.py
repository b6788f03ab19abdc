"""What this machine's processor multiplies fast."""

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SLOW = 4.0  # times float32's time: more than any overhead
ROWS, WIDTH = 64, 576


@cache
def bfloat16_slowdown() -> float:
    """How many times as long as in float32 a matrix product takes in bfloat16 here, measured in about 0.1 s.

    Below 1 on processors that have instructions for it (AMX, AVX512-BF16, Arm's BF16); on others it may be 50.
    """
    import torch

    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def slow_bfloat16(device: "torch.device", arithmetic: str) -> str | None:
    """What to warn of, where arithmetic that is named so is bfloat16's and slow on this device."""
    if device.type != "cpu" or not any(name in arithmetic for name in ("bfloat16", "bf16")):
        return None
    slowdown = bfloat16_slowdown()
    if slowdown < SLOW:
        return None
    return f"{arithmetic}: this processor multiplies bfloat16 some {slowdown:.0f} times slower than float32"


def _seconds(dtype: "torch.dtype") -> float:
    """Of one product: the least of all in 50 ms, for other work may stand in the way, but of four at least."""
    import torch

    a, b = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    took: list[float] = []
    while len(took) < 4 or sum(took) < 0.05:
        started = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - started)
    return min(took)
