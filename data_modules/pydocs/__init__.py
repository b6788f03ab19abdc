"""pydocs: a test collection every machine has, the documentation of the running Python's standard library.

The documents are made from the docstrings of this interpreter; questions and judgements lie beside this file.
"""

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from data_modules.collection import Collection, Document
from data_modules.pydocs.cut import passages, split_paragraphs
from data_modules.pydocs.walk import MIN_WORDS, Entry, fresh_entries
from data_modules.trec import Qrels, read_qrels
from lit_rerank.errors import UserError

Split = Literal["train", "val", "test", "all"]
MAX_TITLE = 48  # characters of a name with its signature: a small model reads the first tokens of a passage only
_HERE = Path(__file__).parent


def pydocs(split: Split = "all") -> Collection:
    """The questions and judgements of one split, with all the documents.

    Raises:
        UserError: for a split there is none of.
    """
    if split not in get_args(Split):
        raise UserError(f"pydocs has no split {split!r}: choose one of {', '.join(get_args(Split))}")
    parts = ("train", "val", "test") if split == "all" else (split,)
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for part in parts:
        queries |= _questions(part)
        qrels |= read_qrels(_HERE / f"qrels.{part}.txt")
    return Collection(f"pydocs.{split}", documents(), queries, qrels)


@cache
def documents() -> MappingProxyType[str, Document]:
    """Every passage by docid: `json.dumps`, and `json.dumps#2` and on where a docstring is long; `topic:lambda`."""
    modules = (_HERE / "modules.txt").read_text(encoding="utf-8").split()
    found: dict[str, Document] = {}
    for entry in fresh_entries(modules):
        found |= _numbered(entry.name, _title(entry), entry.doc)
    for topic, text in sorted(_topics().items()):
        found |= _numbered(f"topic:{topic}", f"topic:{topic}", text)
    return MappingProxyType(found)


def _title(entry: Entry) -> str:
    """`str.join(iterable, /)`, or `shutil.copytree` where the signature makes it long."""
    title = f"{entry.name}{entry.signature}"
    return title if len(title) <= MAX_TITLE else entry.name


def _numbered(name: str, title: str, text: str) -> dict[str, Document]:
    """The title stands on the first passage, the name alone on the others."""
    cut = [
        Document(name if i == 1 else f"{name}#{i}", passage, title if i == 1 else name)
        for i, passage in enumerate(passages(text), start=1)
    ]
    return {document.docid: document for document in cut}


def _topics() -> dict[str, str]:
    """The language reference, as `help("lambda")` prints it.

    Topics overlap (`compound` holds `if`, `for`, `with`, ...): a paragraph stays with the shortest that has it.
    """
    from pydoc_data.topics import topics  # large, and wanted once

    kept = {}
    seen: set[str] = set()
    for topic, text in sorted(topics.items(), key=lambda item: (len(item[1].split()), len(item[0]), item[0])):
        own = [p for p in split_paragraphs(text) if p not in seen]
        seen.update(p for p in own if len(p.split()) >= MIN_WORDS)
        kept[topic] = "\n\n".join(own)
    return {topic: text for topic, text in kept.items() if len(text.split()) >= MIN_WORDS}


def _questions(part: str) -> dict[str, str]:
    lines = (_HERE / f"questions.{part}.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if line)
