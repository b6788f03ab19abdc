"""Where a processor is slow at bfloat16, who asks for it is told, and the project's own scripts take float32."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rerank import processor
from lit_rerank.backbone import load_for_inference
from lit_rerank.cli import in_one_line
from scripts import recipes
from tests.training import command, train_in, write_data

CPU = torch.device("cpu")
Slow = Callable[[float], None]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Make bfloat16 so many times slower than float32."""

    def make(times: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: times)

    return make


class Threads(TorchDispatchMode):
    """How many threads each operation may take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in str(function):
            self.seen.add(torch.get_num_threads())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_slowdown_is_measured_in_one_thread() -> None:
    processor.bfloat16_slowdown.cache_clear()
    with Threads() as threads:
        assert 0 < processor.bfloat16_slowdown() < math.inf
    assert threads.seen == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_where_it_cannot_be_measured_threads_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.time, "perf_counter", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processor._seconds(torch.float32)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("arithmetic", ["bf16-mixed", "bf16-true", "weights in torch.bfloat16", "bfloat16"])
def test_only_what_is_slow_is_warned_of(arithmetic: str, slow: Slow) -> None:
    slow(1.5)
    assert processor.slow_bfloat16(CPU, arithmetic) is None
    slow(50.0)
    warning = f"{arithmetic}: this processor multiplies bfloat16 some 50 times slower than float32"
    assert processor.slow_bfloat16(CPU, arithmetic) == warning
    assert processor.slow_bfloat16(torch.device("cuda", 0), arithmetic) is None
    for fast in ("32-true", "weights in torch.float32", "16-mixed"):
        assert processor.slow_bfloat16(CPU, fast) is None


@pytest.mark.parametrize("more", [("--trainer.max_steps=1",), ("--dry_run",)], ids=["fit", "dry_run"])
@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ((), "precision bf16-mixed"),
        (("--trainer.precision=32-true", "--model.init_args.backbone.dtype=bfloat16"), "weights in torch.bfloat16"),
        (("--trainer.precision=32-true",), None),
    ],
)
def test_training_says_what_to_set(
    settings: tuple[str, ...], warned: str | None, more: tuple[str, ...], slow: Slow, tiny_model: Path, tmp_path: Path
) -> None:
    slow(50.0)
    words = command("sft", "lora", "permutations", "run", *settings, *more, model=tiny_model)
    expected = (
        pytest.warns(UserWarning, match=f"{warned}: this processor .* set --trainer.precision=32-true --model")
        if warned is not None
        else not_warned()
    )
    with expected:
        train_in(write_data(tmp_path), words)


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_inference_says_what_to_set(dtype: str, slow: Slow, tiny_model: Path, tmp_path: Path) -> None:
    load_for_inference(str(tiny_model)).to(torch.bfloat16).save_pretrained(tmp_path)
    slow(50.0)
    with pytest.warns(UserWarning, match=f"dtype {dtype}, weights in torch.bfloat16: .* set dtype to float32"):
        load_for_inference(str(tmp_path), dtype=dtype, device="cpu")  # type: ignore[arg-type]
    with not_warned():
        load_for_inference(str(tmp_path), dtype="float32", device="cpu")


def test_functions_of_mkl_are_called_on_one_number_first(tiny_model: Path) -> None:
    processor.settle_functions.cache_clear()
    with Called() as loading:
        model = load_for_inference(str(tiny_model), device="cpu")
    with Called() as reading:
        ids = torch.arange(300)[None]
        model(input_ids=ids, labels=ids).loss.exp()
    needed = [key for key in reading.sizes if key[0] in processor.OF_MKL]
    assert {(name, torch.float32, CPU) for name in ("cos", "sin", "exp")} <= {*needed}
    assert [loading.sizes[key][0] for key in needed] == [1] * len(needed)


def test_functions_of_mkl_are_called_on_the_processor() -> None:
    processor.settle_functions.cache_clear()
    with Called() as called, torch.device("meta"):
        processor.settle_functions()
    settled = {key for key in called.sizes if key[0] in processor.OF_MKL}
    assert settled == {(name, dtype, CPU) for name in processor.OF_MKL for dtype in (torch.float32, torch.float64)}


def test_recipes_are_run_in_what_the_processor_is_fast_at(slow: Slow) -> None:
    slow(0.5)
    assert (recipes.dtype(), recipes.arithmetic()) == ("bfloat16", ())
    slow(50.0)
    assert recipes.dtype() == "float32"
    assert recipes.arithmetic() == ("--trainer.precision=32-true", "--model.init_args.backbone.dtype=float32")


def test_a_warning_to_users_is_one_line() -> None:
    in_one_line(lambda: None)
    assert warnings.formatwarning("set this", UserWarning, "a.py", 7) == "warning: set this\n"
    assert "a.py:7" in warnings.formatwarning("set this", FutureWarning, "a.py", 7)


class Called(TorchDispatchMode):
    """How many numbers each operation was called on, in order, by its name, their dtype and their device."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[tuple[str, torch.dtype, torch.device], list[int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            key = (function.overloadpacket.__name__, args[0].dtype, args[0].device)
            self.sizes.setdefault(key, []).append(args[0].numel())
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def not_warned() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*this processor multiplies")
        yield
