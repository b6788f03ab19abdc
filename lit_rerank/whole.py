"""Files and folders that are written whole or not at all, and whether an archive is still whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from lit_rerank.errors import UserError

_UNFINISHED, _REPLACED = "unfinished", "replaced"
_OF_THE_DISK = ("PytorchStreamWriter", "inline_container", "I/O error")  # what torch and safetensors say of it


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A name to write a file or a folder under; it takes `target`'s place when all of it is on the disk.

    Whatever happens before, `target` is what it was. A file is replaced in one go; a folder is missing for the instant
    between two renamings.

    Raises:
        UserError: if it cannot be written, such as when the disk is full.
    """
    unfinished = _beside(target, _UNFINISHED)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(unfinished)  # of a run that was killed while it wrote
        yield unfinished
        for path in [unfinished, *unfinished.rglob("*")]:
            _to_disk(path)
        _replace(target, unfinished)
        _to_disk(target.parent)
    except Exception as error:
        remove(unfinished)
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _OF_THE_DISK):
            raise
        kept = "what was there before is untouched" if target.exists() else "nothing is left under that name"
        raise UserError(f"cannot write {target}: {_reason(error)}; {kept}") from error


def damage(archive: Path) -> str | None:
    """What is wrong with a zip archive, by its checksums, as torch.save writes it; None if nothing is.

    Raises:
        OSError: if it cannot be read at all.
    """
    try:
        with ZipFile(archive) as file:
            broken = file.testzip()
    except OSError:
        raise
    except BadZipFile:
        return "it is no checkpoint, or only a part of one"
    except Exception:  # a damaged table of contents can lead anywhere
        return "its table of contents is damaged"
    return None if broken is None else f"{broken} in it is damaged"


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _replace(target: Path, new: Path) -> None:
    if not target.is_dir():
        new.replace(target)
        return
    old = _beside(target, _REPLACED)
    remove(old)
    target.rename(old)
    new.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cut_unfinished_line(path: Path) -> None:
    """Of a file of lines: whoever wrote it was stopped within the last one, and the next must not go on there."""
    if path.is_file():
        written = path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            os.truncate(path, whole)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """Libraries that write by themselves hide the system's error behind one of their own."""
    causes: list[BaseException] = [error]
    while (before := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(before)
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(error).strip().split("\n")[0]
