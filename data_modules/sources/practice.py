"""Windows made from a collection: one passage that answers, among others that do not.

Where a collection has text alone, the query comes from the answer itself (*pointing practice*): a small model learns
first that `[3]` is the passage that it read as [3]. With questions and judgements it learns what answers them.
"""

import random
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection as Container
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from data_modules import catalogue  # the module: it imports sources itself
from data_modules.collection import Collection, Document
from data_modules.first_stage import Bm25
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import Source
from lit_rerank.errors import UserError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
LONGER = re.compile(r"\b[^\W\d_]{5,}\b")
NEAR = 15  # as many of BM25's best are near


@dataclass
class Negatives:
    """Where the passages beside the answer come from; what remains of 1 is drawn from the whole collection.

    Attributes:
        near: share of those that BM25 likes best for the query.
        siblings: share of those whose docid begins as the answer's (`json.dumps`, `json.loads`).
    """

    near: float = 0.25
    siblings: float = 0.25

    def __post_init__(self) -> None:
        if min(self.near, self.siblings) < 0 or self.near + self.siblings > 1:
            raise UserError(
                f"negatives: near {self.near} and siblings {self.siblings} are shares, and at most 1 together"
            )


@dataclass
class Queries:
    """What serves as the query for a passage: weights to draw by.

    Attributes:
        span: 4 to 10 words of the passage as it is shown.
        sentence: up to 12 words of one of its sentences, which is then cut out of it.
        first: its first sentence, cut out of it.
        title: its title, cut out of it.
        words: 2 to 4 of its longer words, as people type them who seek it.
    """

    span: float = 1.0
    sentence: float = 0.0
    first: float = 0.0
    title: float = 0.0
    words: float = 0.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or not any(vars(self).values()):
            raise UserError(f"queries: {vars(self)} must be weights of 0 or more, one of them above 0")


@dataclass(frozen=True)
class Answer:
    """A query, the passage that answers it, and docids that must not stand beside it."""

    qid: str
    query: str
    passage: Passage
    kept_out: Container[str] = field(default_factory=tuple)


class PracticeSource(Source[RankingRecord]):
    """Records of one answer and its negatives, in random order; only the first choice is to be learned.

    Args:
        collection: see `open_collection`.
        windows: how many records a pass yields.
        min_size, max_size: passages in a record, drawn uniformly.
        negatives: where the others come from.
        seed: of all draws; a pass yields the same records each time.
    """

    def __init__(
        self,
        collection: str,
        windows: int,
        min_size: int,
        max_size: int,
        negatives: Negatives | None,
        seed: int,
    ) -> None:
        super().__init__()
        if windows < 1 or not 2 <= min_size <= max_size:
            raise UserError(f"windows {windows} must be at least 1, and sizes {min_size}..{max_size} go from 2 up")
        self.collection = catalogue.open_collection(collection)
        if max_size > len(self.collection.documents):
            raise UserError(f"{collection} holds {len(self.collection.documents)} documents, max_size is {max_size}")
        self._docids = list(self.collection.documents)
        self.windows, self.sizes, self.seed = windows, (min_size, max_size), seed
        self.negatives = negatives or Negatives()

    @abstractmethod
    def _answer(self, number: int, draw: random.Random) -> Answer: ...

    def _read(self) -> Iterator[RankingRecord]:
        bm25 = Bm25(self.collection)
        siblings = _siblings(self.collection.documents)
        for number in range(self.windows):
            draw = random.Random(f"{self.seed}/{number}")
            answer = self._answer(number, draw)
            near = [passage.docid for passage in bm25.neighbours(answer.query, NEAR)]
            yield self._record(answer, near, siblings[_family(answer.passage.docid)], draw)

    def _record(
        self, answer: Answer, near: Sequence[str], siblings: Sequence[str], draw: random.Random
    ) -> RankingRecord:
        size = draw.randint(*self.sizes)
        chosen: dict[str, Passage] = {answer.passage.docid: answer.passage}
        for docid in self._candidates(near, siblings, 4 * size, draw):
            if len(chosen) == size:
                break
            if docid not in answer.kept_out and _object(docid) != _object(answer.passage.docid):
                chosen.setdefault(docid, self.collection.documents[docid].passage)
        if len(chosen) < size:
            raise UserError(
                f"{self.collection.name}: only {len(chosen) - 1} documents can stand beside {answer.passage.docid} in "
                f"a window of {size} passages; lower max_size"
            )
        passages = list(chosen.values())
        draw.shuffle(passages)
        first = passages.index(answer.passage) + 1
        order = (first, *(i for i in range(1, len(passages) + 1) if i != first))
        return RankingRecord(answer.qid, answer.query, tuple(passages), order, choices=1)

    def _candidates(
        self, near: Sequence[str], siblings: Sequence[str], draws: int, draw: random.Random
    ) -> Iterator[str]:
        """Draws from the pools by their shares; should these not do, the whole collection in random order."""
        shares = (self.negatives.near, self.negatives.siblings)
        for pool in draw.choices((near, siblings, self._docids), (*shares, 1 - sum(shares)), k=draws):
            yield draw.choice(pool or self._docids)
        yield from draw.sample(self._docids, len(self._docids))


class PointingSource(PracticeSource):
    """Queries made from the text of the passage that answers them; unlimited, from any collection.

    Args:
        collection: see `open_collection`; only its documents are used.
        windows: how many records a pass yields.
        queries: what serves as the query.
        min_size, max_size: passages in a record, drawn uniformly.
        negatives: where the others come from.
        exclude: collections whose judged answers (grade 2 or more; of binary judgements, 1) are not to be practised on.
        shown_words: so many words of a passage are shown at least; spans are taken from them.
        min_words: shorter documents are not asked about.
        seed: of all draws.
    """

    def __init__(
        self,
        collection: str,
        windows: int = 1000,
        queries: Queries | None = None,
        min_size: int = 2,
        max_size: int = 2,
        negatives: Negatives | None = None,
        exclude: Sequence[str] = (),
        shown_words: int = 20,
        min_words: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__(collection, windows, min_size, max_size, negatives, seed)
        self.queries, self.shown_words = queries or Queries(), shown_words
        held_out = set().union(*(answering(catalogue.open_collection(name)) for name in exclude))
        self._documents = [
            document
            for document in self.collection.documents.values()
            if document.docid not in held_out and len(document.text.split()) >= min_words
        ]
        if not self._documents:
            raise UserError(f"{collection} holds no document of {min_words} words that may be practised on")

    def _answer(self, number: int, draw: random.Random) -> Answer:
        kinds = vars(self.queries)
        for _ in range(1000):
            document = draw.choice(self._documents)
            (kind,) = draw.choices(list(kinds), list(kinds.values()))
            made = self._make(kind, document, draw)
            if made is not None:
                query, shown = made
                return Answer(f"{document.docid}:{number}", query, shown.passage)
        raise UserError(f"no query of the kinds {kinds} can be made from the documents of {self.collection.name}")

    def _make(self, kind: str, document: Document, draw: random.Random) -> tuple[str, Document] | None:
        """A query and the document as it is shown then, or None where this document is of no use for that."""
        if kind == "span":
            words = document.passage.text.split()[: self.shown_words]
            length = min(draw.randint(4, 10), len(words))
            start = draw.randint(0, len(words) - length)
            return " ".join(words[start : start + length]), document
        if kind == "words":
            longer = list(dict.fromkeys(word.lower() for word in LONGER.findall(document.text)))
            places = sorted(draw.sample(range(len(longer)), min(draw.randint(2, 4), len(longer))))
            return (" ".join(longer[place] for place in places), document) if len(places) > 1 else None
        if kind == "title":
            return (document.title, Document(document.docid, document.text)) if document.title else None
        sentences = [s for s in SENTENCE_END.split(document.text) if len(s.split()) >= 4]
        if not sentences:
            return None
        sentence = sentences[0] if kind == "first" else draw.choice(sentences)
        rest = document.text.replace(sentence, "", 1).strip()
        if len(rest.split()) < 8 and not (document.title and kind == "first"):
            return None
        words = sentence.split()
        start = 0 if kind == "first" else draw.randint(0, max(0, len(words) - 12))
        return " ".join(words[start : start + 12]), Document(document.docid, rest, document.title)


class JudgedSource(PracticeSource):
    """Judged questions: a passage of the best grade among passages that nobody judged relevant.

    Relevant documents that the collection lacks are left out, with the questions that have no others, and counted.

    Args:
        collection: see `open_collection`; its questions and judgements are used.
        windows: how many records a pass yields; questions take turns.
        min_size, max_size: passages in a record, drawn uniformly.
        negatives: where the others come from; passages judged 1 or more never do.
        seed: of all draws.
    """

    def __init__(
        self,
        collection: str,
        windows: int = 1000,
        min_size: int = 2,
        max_size: int = 5,
        negatives: Negatives | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(collection, windows, min_size, max_size, negatives, seed)
        self._qids = [qid for qid in self.collection.queries if max(self._grades(qid).values(), default=0) > 0]
        if not self._qids:
            raise UserError(f"{collection} has no question with a relevant document")

    def _read(self) -> Iterator[RankingRecord]:
        self.skipped = list(self._absent())
        return super()._read()

    def _absent(self) -> Iterator[str]:
        """What is said of relevant documents that the collection lacks, and of questions that have no others."""
        for qid in self.collection.queries:
            grades = self.collection.qrels.get(qid, {})
            absent = [d for d, grade in grades.items() if grade > 0 and d not in self.collection.documents]
            yield from (f"{self.collection.name}: query {qid!r}: there is no document {docid!r}" for docid in absent)
            if absent and qid not in self._qids:
                yield f"{self.collection.name}: query {qid!r}: none of its relevant documents is there"

    def _grades(self, qid: str) -> Mapping[str, int]:
        known = self.collection.qrels.get(qid, {})
        return {docid: grade for docid, grade in known.items() if docid in self.collection.documents}

    def _answer(self, number: int, draw: random.Random) -> Answer:
        qid = self._qids[number % len(self._qids)]
        grades = self._grades(qid)
        docid = draw.choice([docid for docid, grade in grades.items() if grade == max(grades.values())])
        relevant = {docid for docid, grade in grades.items() if grade > 0}
        passage = self.collection.documents[docid].passage
        return Answer(f"{qid}:{number}", self.collection.queries[qid], passage, relevant)


def answering(collection: Collection) -> set[str]:
    """The documents judged 2 or more for any question; where no grade is above 1, those judged 1."""
    best = max((grade for grades in collection.qrels.values() for grade in grades.values()), default=0)
    least = min(2, max(best, 1))
    return {docid for grades in collection.qrels.values() for docid, grade in grades.items() if grade >= least}


def _siblings(documents: Mapping[str, Document]) -> Mapping[str, list[str]]:
    families: dict[str, list[str]] = defaultdict(list)
    for docid in documents:
        families[_family(docid)].append(docid)
    return families


def _family(docid: str) -> str:
    """`json.dumps#2` -> `json`; a docid without dots is a family of its own."""
    return _object(docid).rpartition(".")[0] or _object(docid)


def _object(docid: str) -> str:
    """`json.dumps#2` -> `json.dumps`."""
    return docid.partition("#")[0]
