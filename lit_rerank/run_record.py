"""`run.json`: what a run was made of, to be told apart and made again later."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_modules.base import RankingDataModule
from data_modules.manifest import NAME as MANIFEST
from data_modules.manifest import Manifest
from lit_rerank.errors import UserError

NAME = "run.json"
PACKAGES = ("lit-rerank", "torch", "lightning", "transformers", "tokenizers", "peft", "bitsandbytes", "datasets")


def run_record(
    stage: str, config: Mapping[str, Any], data: RankingDataModule[Any] | None, processes: int
) -> dict[str, Any]:
    """Stage, seed, versions, state of the code, machine, what the data was, and the configuration."""
    return {
        "stage": stage,
        "seed": config.get("seed_everything"),
        "versions": versions(),
        "git": git_state(),
        "machine": machine(processes),
        "data": {} if data is None else manifest(config, data),
        "config": config,
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `<run>/run.json`; the file is put in place once it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def is_of_training(folder: Path) -> bool:
    """Whether a folder's `run.json` is that of a training, or cannot be told from one."""
    if not (folder / NAME).is_file():
        return False
    with suppress(ValueError, AttributeError):
        return json.loads((folder / NAME).read_text()).get("stage", "fit") == "fit"
    return True


def add_to_record(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Add what became known later."""
    if (folder / NAME).is_file():
        write_record(folder, json.loads((folder / NAME).read_text()) | {name: figures})


def versions() -> dict[str, str | None]:
    """Of Python and of what decides about numbers; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """Commit of the checkout that a file belongs to, and whether tracked files differ from it; None: it is in none."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie in a checkout of something else
        return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--untracked-files=no") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def machine(processes: int) -> dict[str, Any]:
    """Where it ran; of several nodes, this is rank 0's."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus, "processes": processes}


def manifest(config: Mapping[str, Any], data: RankingDataModule[Any]) -> dict[str, dict[str, Any]]:
    """For each source: its class, its files (bytes and SHA-256), how many records it has (None: nobody knows)
    and lines it left out."""
    settings = config["data"]["init_args"]
    sources = {**data.sources, "replay": data.replay}
    described = {}
    counts = {name: len(rows) for name, rows in data.records.items()} | data.streamed
    for name, count in counts.items():
        skipped = getattr(sources[name], "skipped", [])
        described[name] = {
            "source": type(sources[name]).__name__,
            "files": {str(path): describe(path) for path in _paths(settings[name])},
            "records": count,
            "skipped": len(skipped),
            "first_skipped": skipped[0] if skipped else None,
        }
    return described


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256: of a file's content, or of a directory's list of files with their sizes.

    Of a folder of shards, it is the SHA-256 of its manifest, which has those of the shards; the manifest without them
    is there, too.
    """
    if path.is_file():
        with path.open("rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    content = (path / MANIFEST).read_bytes() if (path / MANIFEST).is_file() else b""
    with suppress(UserError):  # a folder may hold something else of that name
        found = Manifest.parse(content, str(path))
        return {
            "bytes": sum(shard.bytes for shard in found.shards),
            "files": len(found.shards),
            "sha256": hashlib.sha256(content).hexdigest(),
            "manifest": {name: value for name, value in asdict(found).items() if name != "shards"},
        }
    sizes = {str(file.relative_to(path)): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    listed = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    return {"bytes": sum(sizes.values()), "files": len(sizes), "sha256": listed}


def _paths(settings: Any) -> Iterator[Path]:
    """The files and directories that a source's settings name."""
    if isinstance(settings, Mapping):
        settings = [value for name, value in settings.items() if name != "class_path"]
    if isinstance(settings, list):
        for value in settings:
            yield from _paths(value)
    elif isinstance(settings, str) and settings and Path(settings).expanduser().exists():
        yield Path(settings).expanduser()
