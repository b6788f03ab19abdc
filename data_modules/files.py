"""Files read safely: whatever they hold, and however much of it, the answer is lines or one `UserError`."""

import gzip
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import count
from pathlib import Path

from lit_rerank.errors import UserError

# Bytes, unpacked. A hundred passages of a book's page each are a hundredth of the one; the published training sets
# that are a single JSON array are a quarter of the other.
MAX_LINE = 1 << 26
MAX_ARRAY = 1 << 31


def user_path(path: str | Path) -> Path:
    """The path, `~` resolved."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of all processes that fetch something into a folder, one at a time: the others wait, and find it there."""
    from filelock import FileLock

    lock = FileLock(folder / ".lit-rerank.lock")
    try:
        lock.acquire()
    except OSError:  # the folder is another user's, or knows no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A name to write under: what is written takes the place of `path` once it is whole.

    A pipe or a device is written itself; where `path` is a link, what it leads to is replaced.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[BufferedIOBase]:
    """A file to write, packed where its name ends in `.gz`, and put in place once it is whole; the same content is the
    same bytes."""
    with put_in_place(path) as place, place.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                yield packed
        else:
            yield raw


def new_folder(folder: str | Path) -> Path:
    """The path of a folder to be written, or a UserError where something is there already."""
    path = user_path(folder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} holds something already: name a new directory")
    return path


def existing_file(path: str | Path) -> Path:
    """The path, or a UserError where there is no such file."""
    file = user_path(path)
    try:
        if file.is_file():
            return file
        if file.is_dir():
            raise UserError(f"{path} is a directory, not a file")
        raise UserError(f"{path} is no regular file" if file.exists() else f"{path} does not exist")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, longest: int = MAX_LINE) -> Iterator[tuple[str, bytes]]:
    """`file:line` and content of each line that is not blank. Only "\\n" ends a line: texts hold U+0085 and U+2028.

    A byte-order mark is no part of a line. Of a line of more than `longest` bytes the rest is passed over; `decoded`
    refuses what is left.

    Raises:
        UserError: where the file cannot be read (further), such as a truncated gzip.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number in count(1):
                line = lines.readline(longest + 1)
                rest = line
                while len(rest) > longest and not rest.endswith(b"\n"):
                    rest = lines.readline(longest + 1)
                if not line:
                    return
                if len(line) <= longest:
                    line = line.removeprefix(BOM_UTF8)
                if line and not line.isspace():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}:{number}: cannot be read any further: {error}") from None


def decoded(line: bytes, longest: int = MAX_LINE) -> str:
    """The text of a line.

    Raises:
        UserError: where it is too long, or no UTF-8.
    """
    if len(line.rstrip(b"\r\n")) > longest:
        raise UserError(f"has more than {longest >> 20} MiB; no line may be longer")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte {error.start + 1} of the line") from None
