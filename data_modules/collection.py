"""A collection to search: its documents, and where they are known its queries and judgements."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_modules.records import Passage


@dataclass(frozen=True)
class Document:
    """One text of a collection. `title` may be empty."""

    docid: str
    text: str
    title: str = ""

    @property
    def passage(self) -> Passage:
        """What is searched and what the model reads: the title, where there is one, leads the text."""
        return Passage(self.docid, f"{self.title}: {self.text}" if self.title else self.text)


@dataclass(frozen=True)
class Collection:
    """Documents by docid, queries by qid, and grades by qid and docid."""

    name: str
    documents: Mapping[str, Document]
    queries: Mapping[str, str] = field(default_factory=dict)
    qrels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
