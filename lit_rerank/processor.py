"""What this machine's processor computes fast, and what it must have computed once to be right."""

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SLOW = 3.0  # times float32's time: more than any overhead
ROWS, WIDTH = 64, 576
OF_MKL = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "tanh"),
    *("erf", "erfc", "erfinv", "exp", "log", "log2", "log10", "sqrt", "trunc"),
)


@cache
def bfloat16_slowdown() -> float:
    """How many times as long as in float32 a matrix product takes in bfloat16 here, measured in about 0.1 s.

    Below 1 on processors that have instructions for it (AMX, AVX512-BF16, Arm's BF16); on others it may be 50.
    """
    import torch

    return _seconds(torch.bfloat16) / _seconds(torch.float32)


@cache
def settle_functions() -> None:
    """Call each function that torch takes from MKL (ATen/cpu/vml.h) once, on one number, hence in one thread.

    MKL chooses a function's kernel in its first call in a process. Where two threads make that call at once, one of
    them may compute its half by a kernel that is wrong from the fourth digit on (PyTorch issue 188792; seen in the
    rotary embedding's cosines).
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")  # whatever device is the default
        for function in OF_MKL:
            getattr(one, function)()


def slow_bfloat16(device: "torch.device", arithmetic: str) -> str | None:
    """What to warn of, where arithmetic that is named so is bfloat16's and slow on this device."""
    if device.type != "cpu" or not any(name in arithmetic for name in ("bfloat16", "bf16")):
        return None
    slowdown = bfloat16_slowdown()
    if slowdown < SLOW:
        return None
    return f"{arithmetic}: this processor multiplies bfloat16 some {slowdown:.0f} times slower than float32"


def _seconds(dtype: "torch.dtype") -> float:
    """Of one product: the least of all in 50 ms, for other work may stand in the way, but of four at least.

    In one thread: two wait for each other where other work holds one of them up, the more the faster the product is.
    """
    import torch

    a, b = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    took: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(took) < 4 or sum(took) < 0.05:
            started = time.perf_counter()
            a @ b
            took.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(took)
