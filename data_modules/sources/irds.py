"""Datasets of the `ir_datasets` catalogue, by their ids."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

from data_modules.files import one_at_a_time
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError
from data_modules.sources.retrieval import RetrievalSource, Teacher
from data_modules.trec import Qrels, Ranking, in_order
from lit_rerank.errors import UserError


class IrDatasetsSource(RetrievalSource):
    """One record for each query of an `ir_datasets` dataset that brings a first stage (its `scoreddocs`).

    Needs the extra `[ir_datasets]`. What is not on disk yet is downloaded at the first pass.

    Args:
        dataset: an id such as `msmarco-passage/trec-dl-2019/judged`.
        depth: keep only the first so many candidates.
        teacher: whose order is to be learned: `first_stage`, `qrels` (by grade, then by first stage) or `none`.
        on_error: `raise` or `skip`, for single queries.
    """

    def __init__(
        self, dataset: str, depth: int | None = 100, teacher: Teacher = "none", on_error: OnError = "raise"
    ) -> None:
        self.name, self.dataset = dataset, load(dataset, "docs", "queries", "scoreddocs")
        super().__init__({} if self.dataset.has_qrels() else None, depth, teacher, on_error)

    def _read(self) -> Iterator[RankingRecord]:
        fetch(self.name, self.dataset, "queries", "qrels", "scoreddocs", store=True)
        with reading(self.name):
            self.qrels, queries = qrels_of(self.dataset), queries_of(self.dataset)
            run = {qid: in_order(ranking)[: self.depth] for qid, ranking in _rankings(self.dataset).items()}
            needed = {docid for ranking in run.values() for docid, _ in ranking}
            texts = {
                docid: document.default_text() for docid, document in self.dataset.docs_store().get_many(needed).items()
            }

        def record(qid: str) -> RankingRecord:
            absent = next((docid for docid, _ in run[qid] if docid not in texts), None)
            if qid not in queries or absent is not None:
                raise UserError(f"query {qid!r} has no text" if absent is None else f"docid {absent!r} has no text")
            return self._ranking(qid, queries[qid], tuple(Passage(docid, texts[docid], s) for docid, s in run[qid]))

        yield from self._build(((f"ir_datasets:{self.name}", qid) for qid in run), record)


def load(name: str, *kinds: str) -> Any:
    """The `ir_datasets` dataset called `name`.

    Raises:
        UserError: where the package is absent, has no such dataset, or the dataset lacks one of `kinds`.
    """
    try:
        import ir_datasets
    except ImportError:
        raise UserError(f"ir_datasets:{name} needs a package: pip install 'lit-rerank[ir_datasets]'") from None
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise UserError(f"ir_datasets has no dataset {name!r}; `ir_datasets list` shows what there is") from None
    for kind in kinds:
        if not dataset.has(kind):
            raise UserError(f"ir_datasets:{name} has no {kind}: take another id of its family")
    return dataset


def fetch(name: str, dataset: Any, *kinds: str, store: bool = False) -> None:
    """Download what a dataset has of `kinds` and is not on disk yet: one process does, the others find it.

    Args:
        store: make the store that documents are looked up in, too.
    """
    from ir_datasets.util import home_path

    with reading(name), one_at_a_time(home_path()):
        for kind in kinds:
            if dataset.has(kind):
                next(iter(getattr(dataset, f"{kind}_iter")()), None)
        if store:
            dataset.docs_store().get_many([])


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever the network or the disk may bring, as one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"ir_datasets:{name} cannot be read: {reason}") from error


def queries_of(dataset: Any) -> dict[str, str]:
    """The queries' texts by qid; none where the dataset has none."""
    return {query.query_id: query.default_text() for query in dataset.queries_iter()} if dataset.has_queries() else {}


def qrels_of(dataset: Any) -> Qrels:
    """Grades by qid and docid; none where the dataset has none.

    Raises:
        UserError: where a document has two grades for a query.
    """
    qrels: Qrels = {}
    for judged in dataset.qrels_iter() if dataset.has_qrels() else ():
        qid, docid, grade = judged.query_id, judged.doc_id, judged.relevance
        first = qrels.setdefault(qid, {}).setdefault(docid, grade)
        if first != grade:
            raise UserError(f"docid {docid!r} of query {qid!r} is judged {first} and {grade}: take another id")
    return qrels


def _rankings(dataset: Any) -> dict[str, Ranking]:
    rankings: dict[str, Ranking] = {}
    for scored in dataset.scoreddocs_iter():
        if not isfinite(scored.score):
            raise UserError(f"docid {scored.doc_id!r} of query {scored.query_id!r} has the score {scored.score}")
        rankings.setdefault(scored.query_id, []).append((scored.doc_id, scored.score))
    return rankings
