"""A TREC run, beside the documents and queries that it names."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import OnError, existing_file
from data_modules.sources.corpus import DocumentsSource, QueriesSource
from data_modules.sources.retrieval import RetrievalSource, Teacher
from data_modules.trec import Ranking, read_qrels, read_run
from lit_rerank.errors import UserError


class TrecSource(RetrievalSource):
    """One record for each query of a run, its candidates in trec_eval's order.

        run:       qid Q0 docid rank score tag
        documents: {"docid" | "_id" | "id": str or int, "text" | "contents": str, "title"?: str}; a title leads the text
        queries:   qid<TAB>query, or {"qid" | "_id" | "id": str or int, "text" | "query": str}

    Args:
        run: a TREC run.
        documents: `.jsonl` or `.jsonl.gz`; only those that the run needs are kept in memory.
        queries: `.tsv` or `.jsonl`, gzipped or not.
        qrels: TREC judgements; a query that they leave out has none.
        depth: keep only the first so many candidates.
        teacher: whose order is to be learned: `first_stage`, `qrels` (by grade, then by first stage) or `none`.
        on_error: `raise` or `skip`, for documents, queries and rankings; a broken run and broken qrels always raise.
    """

    def __init__(
        self,
        run: str | Path,
        documents: str | Path,
        queries: str | Path,
        qrels: str | Path | None = None,
        depth: int | None = 100,
        teacher: Teacher = "none",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(None if qrels is None else read_qrels(qrels), depth, teacher, on_error)
        self.run = existing_file(run)
        self.documents = DocumentsSource(documents, on_error)
        self.queries = QueriesSource(queries, on_error)

    def _read(self) -> Iterator[RankingRecord]:
        run = {qid: ranking[: self.depth] for qid, ranking in read_run(self.run).items()}
        needed = {docid for ranking in run.values() for docid, _ in ranking}
        texts = {document.docid: document.passage.text for document in self.documents if document.docid in needed}
        queries = dict(self.queries)
        self.skipped += self.documents.skipped + self.queries.skipped
        raws = ((f"{self.run}", ranking) for ranking in run.items())
        yield from self._build(raws, lambda ranking: self._record(*ranking, texts, queries))

    def _record(
        self, qid: str, ranking: Ranking, texts: Mapping[str, str], queries: Mapping[str, str]
    ) -> RankingRecord:
        if qid not in queries:
            raise UserError(f"{self.queries.path} lacks query {qid!r}")
        absent = next((docid for docid, _ in ranking if docid not in texts), None)
        if absent is not None:
            raise UserError(f"query {qid!r} lists docid {absent!r}, which {self.documents.path} lacks")
        passages = tuple(Passage(docid, texts[docid], score) for docid, score in ranking)
        return self._ranking(qid, queries[qid], passages)
