"""Checkpoints are there whole or not at all, and damaged ones are found out."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_rerank.checkpoints import WholeCheckpointIO
from lit_rerank.errors import UserError
from lit_rerank.whole import damage, written_whole

STATE = {"weights": torch.arange(50_000.0), "step": 3}


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_was_saved_comes_back(checkpoint: Path) -> None:
    loaded = WholeCheckpointIO().load_checkpoint(checkpoint)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], STATE["weights"])  # type: ignore[arg-type]
    assert damage(checkpoint) is None
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_older_checkpoint_and_is_one_line(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    with (
        files_no_larger_than(len(before) // 2),
        pytest.raises(UserError, match=r"^cannot write .*last\.ckpt: File too large; [^\n]* is untouched$"),
    ):
        WholeCheckpointIO().save_checkpoint({**STATE, "step": 4}, checkpoint)
    assert checkpoint.read_bytes() == before
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_part_of_a_checkpoint_is_refused(checkpoint: Path, share: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be used: it is no checkpoint, or only a part of one\."):
        WholeCheckpointIO().load_checkpoint(checkpoint)


def test_a_single_wrong_bit_is_found(checkpoint: Path) -> None:
    changed = bytearray(checkpoint.read_bytes())
    changed[len(changed) // 2] ^= 1
    checkpoint.write_bytes(changed)
    torch.load(checkpoint, weights_only=True)  # torch does not mind
    with pytest.raises(UserError, match=r"last\.ckpt cannot be used: .*/data/0 in it is damaged\."):
        WholeCheckpointIO().load_checkpoint(checkpoint)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"

    def write(*names: str, fails: bool = False) -> None:
        with written_whole(target) as unfinished:
            unfinished.mkdir()
            for name in names:
                (unfinished / name).write_text(name)
            if fails:
                raise ValueError("stopped")

    write("a", "b")
    with pytest.raises(ValueError, match="stopped"):
        write("c", fails=True)
    assert sorted(file.name for file in target.iterdir()) == ["a", "b"]
    (tmp_path / ".adapter.unfinished").mkdir()  # of a run that was killed
    (tmp_path / ".adapter.unfinished" / "d").touch()
    write("c")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["adapter", "adapter/c"]
