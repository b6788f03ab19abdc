"""Absurd sizes end in one named error, and soon."""

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_modules import PermutationDataModule
from data_modules.files import MAX_LINE, existing_file, read_lines
from data_modules.sources import JsonlSource
from data_modules.sources.base import read_array
from data_modules.trec import MAX_NAME, check_writable, read_qrels, read_run
from data_modules.windows import Augmentation
from lit_rerank.chain import FORMATS
from lit_rerank.cli import train
from lit_rerank.config_files import MAX_BYTES, check_config
from lit_rerank.dpo import DPOModule
from lit_rerank.errors import UserError
from lit_rerank.preferences import Negatives
from lit_rerank.reading import SlidingWindow
from lit_rerank.sanitise import sanitise
from lit_rerank.settings import OptimizerSettings
from lit_rerank.sft import SFTModule
from tests.tiny import record

LONG = 1_000_000
GOOD = json.dumps({"qid": "q", "query": "Q", "passages": [{"docid": "a", "text": "A"}]}).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_of_100_megabytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    with gzip.open(path, "wb", 1) if suffix.endswith(".gz") else path.open("wb") as file:
        file.write(GOOD + b"\n" + b'{"qid": "')
        for _ in range(100):
            file.write(b"x" * LONG)
        file.write(b'"}\n' + GOOD + b"\n")
    with pytest.raises(UserError, match=r":2: has more than 64 MiB; no line may be longer"):
        list(JsonlSource(path))
    source = JsonlSource(path, "skip")
    tracemalloc.start()
    assert [one.qid for one in source] == ["q", "q"]
    assert len(source.skipped) == 1
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE
    tracemalloc.stop()


@pytest.mark.parametrize("end", [b"\n", b"", b"\r\n"])
def test_the_longest_line_is_read(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"x" * 100 + end + (b"y" * 101 + end if end else b""))
    lines = [line for _, line in read_lines(path, 100)]
    assert lines[0].strip() == b"x" * 100
    assert [number.rpartition(":")[2] for number, _ in read_lines(path, 100)] == ["1", "2"][: len(lines)]


def test_a_packed_bomb(tmp_path: Path) -> None:
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(b"[" + b" " * (300 * LONG) + b"x", 9))
    with pytest.raises(UserError, match="not valid JSON"):
        read_array(tmp_path / "data.json.gz")


def test_names_of_runs_and_qrels(tmp_path: Path) -> None:
    path, name = tmp_path / "file.txt", "x" * (MAX_NAME + 1)
    for read, line in ((read_run, f"q Q0 {name} 1 1 t"), (read_qrels, f"q 0 {name} 1"), (read_qrels, "q 0 a\0b 1")):
        path.write_text(line)
        with pytest.raises(UserError, match=r"file\.txt:1: a name of more than 4096 bytes, or one that holds a zero"):
            read(path)  # type: ignore[operator]
    with pytest.raises(UserError, match="rename it"):
        check_writable([record(name)])


@pytest.mark.parametrize("path", ["\0", "x" * 5000, "~nobody-has-this-name/x", ""])
def test_paths_that_nothing_has(path: str) -> None:
    with pytest.raises(UserError):
        existing_file(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_permutation_of_a_million_numbers(name: str) -> None:
    text = "Step 1: " + " > ".join(f"[{i}]" for i in range(1, LONG + 1))
    start = time.process_time()
    assert FORMATS[name].parse(text, 100).permutation == tuple(range(1, 101))
    assert time.process_time() - start < 10
    for refused in (lambda: FORMATS[name].parse(text, 10**9), lambda: FORMATS[name].render(range(1, LONG))):
        with pytest.raises(UserError, match=r"identifiers go up to \[100\]"):
            refused()


@pytest.mark.parametrize(
    "absurd",
    [
        lambda: SlidingWindow(window=10**9),
        lambda: Augmentation(max_size=10**9),
        lambda: Augmentation(windows_per_record=10**9),
        lambda: PermutationDataModule(num_workers=10**6),
        lambda: Negatives.parse(f"sampled:{'9' * 5000}"),
        lambda: OptimizerSettings(lr=float("inf")),
        lambda: OptimizerSettings(weight_decay=float("nan")),
        lambda: SFTModule(None, choice_weight=float("nan")),  # type: ignore[arg-type]
        lambda: SFTModule(None, replay_weight=float("inf")),  # type: ignore[arg-type]
        lambda: DPOModule(None, beta=float("nan")),  # type: ignore[arg-type]
        lambda: DPOModule(None, sft_weight=float("nan")),  # type: ignore[arg-type]
    ],
)
def test_absurd_settings(absurd: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        absurd()


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BAD_CONFIGS = {
    "a bomb of aliases": (ALIASES, "holds more than 100,000 values, once its aliases are written out"),
    "one that holds itself": ("a: &a [*a]\n", "it holds itself"),
    "a deep one": ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
    "a large one": ("# " + "x" * MAX_BYTES + "\n", "has more than 1 MiB"),
    "one that wants Python": ("a: !!python/object/apply:os.system [x]\n", ":1: not valid YAML: could not determine"),
    "a month too many": ("a: 2026-13-01\n", "not usable YAML: month must be"),
    "no UTF-8": (b"a: \xff\n", "not valid YAML: not UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "not valid YAML: not UTF-8"),
    "nothing": ("", "must hold settings (key: value), not nothing"),
    "a list": ("- a\n", "must hold settings (key: value), not a list"),
    "words": ("just words\n", "must hold settings (key: value), not a single value"),
    "an unknown anchor": ("a: *b\n", ":1: not valid YAML: found undefined alias"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs(name: str, tmp_path: Path) -> None:
    content, message = BAD_CONFIGS[name]
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(UserError) as error:
        check_config(file)
    assert message in str(error.value)
    assert "bad.yaml" in str(error.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("option", ["--config", "-c", "--data", "--model", "--trainer"])
@pytest.mark.parametrize("written", ["{option}={file}", "{option} {file}"])
def test_every_option_that_takes_a_config_checks_it(option: str, written: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(ALIASES)
    words = written.format(option=option, file=tmp_path / "bomb.yaml").split()
    with pytest.raises(SystemExit, match="holds more than 100,000 values"):
        train(["fit", *words])


def test_a_config_with_an_alias_is_none_the_worse(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n")
    check_config(file)


HOSTILE = 200_000  # characters: in time that grows with their square, minutes
NESTED = "[" * (HOSTILE // 2) + "1" + "]" * (HOSTILE // 2)
REPEATED = (
    "[",
    "[ 1 ]",
    "<a",
    "step ",
    "1 > ",
    "1 ",
    "#",
    "\u200b",
    "a:",
    "step 1 : ",
    "->",
    "«",
    "<!",
    "1_>",
    "1ː",
    "e\u0301",
)


@pytest.mark.parametrize(
    "text", [NESTED, "1" + " " * HOSTILE, "1" + ":" * HOSTILE, *(part * (HOSTILE // len(part)) for part in REPEATED)]
)
def test_sanitising_is_linear(text: str) -> None:
    start = time.process_time()
    sanitise(text)
    assert time.process_time() - start < 20
