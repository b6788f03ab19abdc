"""What is known of a folder of shards: a `manifest.json` beside them."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from data_modules import rows  # the module: it imports sources itself
from data_modules.sources.base import Row, each, is_text, is_whole, parse_object, text
from data_modules.sources.base import field as required
from lit_rerank.chain import get_format
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from lit_rerank.chat import ChatTokenizer

NAME = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One file: its name within the folder, how many records and bytes it has, and its SHA-256."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """Lines that were left out for one reason, and the message of the first of them."""

    reason: str
    lines: int
    first: str


@dataclass(frozen=True)
class Manifest:
    """A folder of shards.

    Attributes:
        kind: of its records: `RankingRecord`, `PreferencePair` or `Conversation`.
        skipped: what was left out when it was prepared.
        encoded_as: fingerprints of the tokenizer and the format that it is meant for (see `fingerprints`); empty: any.
        tokens: of all queries and passages by that tokenizer, None where none was named.
    """

    kind: str
    records: int
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()
    encoded_as: Mapping[str, str] = field(default_factory=dict)
    tokens: int | None = None

    def check_kind(self, wanted: Sequence[type], folder: str) -> None:
        """Raise a UserError unless the records are of a kind that is wanted."""
        try:
            rows.check_kind(self.record, wanted)
        except UserError as error:
            raise UserError(f"{folder}/{NAME}: {error}") from None

    @property
    def record(self) -> type:
        """The class of the records."""
        return next(kind for kind in rows.KINDS if kind.__name__ == self.kind)

    def check_encoder(self, encoder: WindowEncoder, folder: str) -> None:
        """Raise a UserError where the shards were prepared for another tokenizer or format."""
        for name, own in fingerprints(encoder.chat, encoder.settings).items():
            meant = self.encoded_as.get(name, own)
            if meant != own:
                raise UserError(
                    f"{folder}/{NAME}: prepared for another {name} (fingerprint {meant}) than this run's ({own}): "
                    "take that one, or prepare the data anew"
                )

    def dump(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, content: bytes, place: str) -> "Manifest":
        """Raise a UserError that begins with `place` where `content` is no manifest."""
        try:
            manifest = _manifest(parse_object(content))
            if not manifest.shards:
                raise UserError('"shards" is empty')
            name, count = Counter(shard.name for shard in manifest.shards).most_common(1)[0]
            if count > 1:
                raise UserError(f'"shards" names {name} {count} times')
            if manifest.records != sum(shard.records for shard in manifest.shards):
                raise UserError(f'"records" is {manifest.records}, which is not what its shards hold together')
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        return manifest


def fingerprints(chat: "ChatTokenizer | None", prompt: PromptSettings | None) -> dict[str, str]:
    """Of a tokenizer with its chat template, and of how prompts are written: equal only where text is encoded alike."""
    found = {}
    if chat is not None:
        tokenizer: Any = chat.tokenizer
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        written = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}
        found["tokenizer"] = _digest([written, tokenizer.chat_template, tokenizer.all_special_tokens])
    if prompt is not None:
        form = get_format(prompt.format)
        shown = form.user("query", ["one", "two"], prompt.repeat_identifier)
        found["format"] = _digest([asdict(prompt), form.system, shown, form.render((2, 1)).text])
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _manifest(row: Row) -> Manifest:
    return Manifest(
        kind=required(row, "kind", _is_kind, "RankingRecord, PreferencePair or Conversation"),
        records=_count(row, "records"),
        shards=each(row, "shards", _shard),
        skipped=each(row, "skipped", _skipped),
        encoded_as=required(row, "encoded_as", _is_texts, "an object of strings"),
        tokens=None if row.get("tokens") is None else _count(row, "tokens"),
    )


def _shard(row: Row) -> Shard:
    name = text(row, "name")
    if name != name.rpartition("/")[2] or name in ("", ".", "..") or not name.isprintable():
        raise UserError(f'"name" must be that of a file in this folder, not {name!r}')
    records = _count(row, "records")
    if not records:
        raise UserError('"records" is 0; a shard holds at least 1')
    return Shard(name, records, _count(row, "bytes"), text(row, "sha256"))


def _skipped(row: Row) -> Skipped:
    return Skipped(text(row, "reason"), _count(row, "lines"), text(row, "first"))


def _count(row: Row, name: str) -> int:
    count = required(row, name, is_whole, "a whole number")
    if count < 0:
        raise UserError(f'"{name}" is {count}; it must not be negative')
    return count


def _is_kind(value: Any) -> TypeGuard[str]:
    return value in [kind.__name__ for kind in rows.KINDS]


def _is_texts(value: Any) -> TypeGuard[Mapping[str, str]]:
    return isinstance(value, dict) and all(map(is_text, value.values()))
