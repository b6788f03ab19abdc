"""Any source as Parquet shards with a manifest: `python -m data_modules.prepare --help`; see docs/data.md."""

import os
import re
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_modules import rows
from data_modules.files import user_path
from data_modules.manifest import NAME, Manifest, Shard, Skipped, fingerprints
from data_modules.records import RankingRecord
from data_modules.sources import PreferencePair
from data_modules.sources.base import OnError, Source
from data_modules.sources.detect import open_source
from data_modules.sources.shards import CHUNK, hash_of
from lit_rerank.cli import in_one_line
from lit_rerank.config_files import check_config, is_file
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from lit_rerank.chat import ChatTokenizer

Item = TypeVar("Item")

EXAMPLE = "'{class_path: JsonlSource, init_args: {path: train.jsonl}}'"
MOST_RECORDS = 10_000_000  # of a shard
_PLACE = re.compile(r"^.*?(?::\d+|: record \d+): ")  # of a line, before what is wrong with it
_DETAIL = re.compile(r"'[^']*'|\b\d+\b")  # what differs from line to line


def prepare(
    *sources: str,
    output: Path,
    on_error: OnError = "raise",
    shard_records: int = 1000,
    tokenizer: str | None = None,
    prompt: PromptSettings | None = None,
) -> Manifest:
    """Write the records of any sources into Parquet shards, with a manifest; data modules load or stream them.

    Args:
        sources: files whose layout can be told by their first row, or sources as in configs: YAML, or a .yaml file.
        output: a folder, new or empty. It is put in place once it is whole.
        on_error: what becomes of a broken line in a file: `raise`, or `skip`; sources from configs say that themselves.
        shard_records: records of a shard, the last excepted.
        tokenizer: Hugging Face id or directory: the shards are meant for it alone, and their tokens are counted.
        prompt: the shards are meant for prompts of these settings alone.

    Raises:
        UserError: for a broken line, records of several kinds or none, a folder that is not empty.
    """
    if not 1 <= shard_records <= MOST_RECORDS:
        raise UserError(
            f"shard_records is {shard_records}; it must be at least 1 and at most {MOST_RECORDS:,}: a shard is held in "
            "memory until it is written"
        )
    output = user_path(output).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already, and not empty: name another folder, or delete it")
    if output == Path.cwd():
        raise UserError(f"{output} is the current folder, and another would take its place: name a folder in it")
    opened = [_open(source, on_error) for source in sources]
    chat = None if tokenizer is None else _chat(tokenizer)
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        writer = _Writer(temporary, chat)
        for records in _batches(chain.from_iterable(opened), shard_records):
            writer.write(records)
        if writer.kind is None:
            raise UserError(f"{', '.join(sources)}: there is no record")
        manifest = Manifest(
            kind=writer.kind.__name__,
            records=sum(shard.records for shard in writer.shards),
            shards=tuple(writer.shards),
            skipped=by_reason(chain.from_iterable(source.skipped for source in opened)),
            encoded_as=fingerprints(chat, prompt),
            tokens=None if chat is None else writer.tokens,
        )
        (temporary / NAME).write_text(manifest.dump())
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


class _Writer:
    """Writes shards, one after the other, and keeps what the manifest says of them."""

    def __init__(self, folder: Path, chat: "ChatTokenizer | None") -> None:
        self.folder, self.chat = folder, chat
        self.kind: type | None = None
        self.shards: list[Shard] = []
        self.tokens = 0

    def write(self, records: Sequence[Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.kind = self.kind or type(records[0])
        kinds = sorted({kind.__name__ for kind in (self.kind, *map(type, records))})
        if len(kinds) > 1 or self.kind not in rows.KINDS:
            raise UserError(f"shards hold rankings, preference pairs or conversations, one kind; not {kinds}")
        file = self.folder / f"{len(self.shards):05d}.parquet"
        table = pa.Table.from_pylist(list(map(rows.to_row, records)), rows.schema(self.kind))
        parquet.write_table(table, file, row_group_size=CHUNK, compression="zstd")
        self.shards.append(Shard(file.name, len(records), file.stat().st_size, hash_of(file)))
        if self.chat is not None:
            self.tokens += sum(len(self.chat.tokenize(text)) for record in records for text in _texts(record))


def by_reason(skipped: Iterable[str]) -> tuple[Skipped, ...]:
    """Messages about lines that were left out, those of one reason together, the most frequent first."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for message in skipped:
        reason = _PLACE.sub("", message).partition(", not ")[0]
        reasons[_DETAIL.sub("...", reason)].append(message)
    frequent = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return tuple(Skipped(reason, len(messages), messages[0]) for reason, messages in frequent)


def _texts(record: Any) -> list[str]:
    if isinstance(record, RankingRecord):
        return [record.query, *(passage.text for passage in record.passages)]
    if isinstance(record, PreferencePair):
        prompt = [record.prompt] if isinstance(record.prompt, str) else [m["content"] for m in record.prompt]
        return [*prompt, record.chosen, record.rejected]
    return [message["content"] for message in record.messages]


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _chat(tokenizer: str) -> "ChatTokenizer":
    from lit_rerank.backbone import load_tokenizer
    from lit_rerank.chat import ChatTokenizer

    return ChatTokenizer(load_tokenizer(tokenizer))


def _open(source: str, on_error: OnError) -> Source[Any]:
    """The source that a word of the command line names."""
    import yaml
    from jsonargparse import ArgumentParser

    file = user_path(source)
    is_config = file.suffix in (".yaml", ".yml") and is_file(file)
    if is_config:
        check_config(file)
    if is_file(file) and not is_config and file.suffix != ".parquet":
        return open_source(file, on_error)
    try:
        settings = yaml.safe_load(file.read_text() if is_config else source)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, Mapping):
        raise UserError(f"{source} is neither a .jsonl or .json file nor a source such as {EXAMPLE}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Source, "source", required=True)
    parsed = parser.parse_object({"source": settings})
    try:
        return parser.instantiate(parsed).source
    except ValueError as error:
        raise UserError(str(error)) from error  # jsonargparse may have packed what the class said


def main() -> None:
    """The command."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    said = parse(prepare.__doc__ or "")
    parser = ArgumentParser(
        prog="python -m data_modules.prepare",
        description=said.short_description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    meaning = next(param.description for param in said.params if param.arg_name == "sources")
    parser.add_argument("sources", nargs="+", type=str, help=meaning)
    parser.add_function_arguments(prepare, as_group=False, skip={"sources"})
    options = vars(parser.instantiate(parser.parse_args()))
    manifest = prepare(*options.pop("sources"), **options)
    print(f"{options['output']}: {manifest.records:,} records in {len(manifest.shards):,} shards")
    for left in manifest.skipped:
        print(f"skipped {left.lines:,} lines: {left.reason} (the first: {left.first})")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which leaves no half of a folder
    in_one_line(main)
