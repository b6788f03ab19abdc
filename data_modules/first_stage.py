"""First stages: what retrieves the candidates that are reranked."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from data_modules.collection import Collection
from data_modules.records import Passage, RankingRecord
from data_modules.trec import in_order
from lit_rerank.errors import UserError


class FirstStage(Protocol):
    """Searches one collection."""

    def search(self, queries: Mapping[str, str], depth: int) -> list[RankingRecord]:
        """For each query (by qid) the `depth` best documents, best first, scored, with the collection's judgements."""
        ...


class Bm25:
    """BM25 as Lucene scores it, over title and text, on the Porter stems of words of two characters or more.

    Lucene's 33 English stop words ("the", "of", "not", ...) are left out of documents and queries. A document that
    shares no other word with the query scores 0. Ties stand in trec_eval's order (docid descending), so that a run
    written from the lists is measured as it stands.

    Args:
        collection: what is searched; indexed once, in memory.
        k1, b: saturation of word counts, and how much they are normalised by length (defaults: Anserini's).
    """

    def __init__(self, collection: Collection, k1: float = 0.9, b: float = 0.4) -> None:
        import bm25s
        import Stemmer

        self.collection = collection
        self._passages = [document.passage for document in collection.documents.values()]
        self._numbers = {passage.docid: number for number, passage in enumerate(self._passages)}
        self._stemmer = Stemmer.Stemmer("porter")
        tokens = [self._tokenize(passage.text) for passage in self._passages]
        if not any(tokens):
            raise UserError(f"collection {collection.name!r} holds no word to index")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(tokens, show_progress=False)

    def search(self, queries: Mapping[str, str], depth: int) -> list[RankingRecord]:
        """For each query (by qid) the `depth` best documents, best first, scored, with the collection's judgements."""
        if depth < 1:
            raise UserError(f"depth is {depth}; it must be at least 1")
        qrels = self.collection.qrels
        return [
            RankingRecord(qid, query, tuple(self._best(self._scores(query), depth)), qrels=qrels.get(qid))
            for qid, query in queries.items()
        ]

    def neighbours(self, text: str, k: int) -> list[Passage]:
        """The `k` best documents for a text, best first."""
        return self._best(self._scores(text), k)

    def _tokenize(self, text: str) -> list[str]:
        import bm25s

        options: dict[str, Any] = {"stopwords": "en", "stemmer": self._stemmer, "show_progress": False}
        tokens: list[list[str]] = bm25s.tokenize([text], return_ids=False, **options)
        return tokens[0]

    def _scores(self, text: str) -> np.ndarray[Any, Any]:
        """A score for each document."""
        ids = self._index.get_tokens_ids(self._tokenize(text))
        scores: np.ndarray[Any, Any] = self._index.get_scores_from_ids(ids)
        return scores

    def _best(self, scores: np.ndarray[Any, Any], depth: int) -> list[Passage]:
        depth = min(depth, len(scores))
        if depth < 1:
            return []
        # All that reach the last place's score, so that it is the docid that decides among equals.
        last = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        ranking = in_order((self._passages[i].docid, float(scores[i])) for i in np.flatnonzero(scores >= last))
        return [Passage(docid, self._passages[self._numbers[docid]].text, score) for docid, score in ranking[:depth]]


def _pyserini(collection: Collection) -> FirstStage:
    from data_modules.lucene import Pyserini  # which imports sources, and they this module

    return Pyserini(collection)


FIRST_STAGES: dict[str, Callable[[Collection], FirstStage]] = {"bm25": Bm25, "pyserini": _pyserini}


def open_first_stage(name: str, collection: Collection) -> FirstStage:
    """The first stage called `name` over a collection.

    Raises:
        UserError: where there is none of that name.
    """
    if name not in FIRST_STAGES:
        raise UserError(f"there is no first stage {name!r}; possible are {', '.join(FIRST_STAGES)}")
    return FIRST_STAGES[name](collection)
