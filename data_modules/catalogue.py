"""Collections by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_modules.collection import Collection, Document
from data_modules.files import user_path
from data_modules.sources import irds
from data_modules.sources.corpus import DocumentsSource, QueriesSource
from data_modules.trec import Qrels, read_beir_qrels, read_qrels
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from data_modules.pydocs import Split

PYDOCS: dict[str, "Split"] = {"pydocs": "all", "pydocs/train": "train", "pydocs/val": "val", "pydocs/test": "test"}
IR_DATASETS = "ir_datasets:"
LUCENE = "pyserini:"
DOCUMENTS = ("corpus.jsonl", "corpus.jsonl.gz", "docs.jsonl", "docs.jsonl.gz")
QUERIES = ("queries.jsonl", "queries.jsonl.gz", "queries.tsv", "queries.tsv.gz")
BEIR_QRELS = ("qrels/test.tsv", "qrels/test.tsv.gz")
TREC_QRELS = ("qrels.txt", "qrels.txt.gz")
POSSIBLE = (
    f"{', '.join(PYDOCS)}, a directory with {DOCUMENTS[0]} or {DOCUMENTS[2]} (.gz) and {QUERIES[2]} or {QUERIES[0]} "
    f"(.gz), a corpus file (.jsonl, .jsonl.gz), {IR_DATASETS}ID, or {LUCENE}INDEX@TOPICS"
)


def open_collection(name: str) -> Collection:
    """The collection called `name`.

    - `pydocs`, `pydocs/train`, `pydocs/val`, `pydocs/test`: the project's own.
    - a directory in BEIR's layout (`corpus.jsonl`, `queries.jsonl` or `.tsv`, `qrels/test.tsv`, whose queries alone
      are taken) or in Cranfield's (`docs.jsonl`, `queries.tsv`, `qrels.txt`), gzipped or not; qrels may be absent.
    - a corpus file: documents alone.
    - `ir_datasets:ID`.
    - `pyserini:INDEX` or `pyserini:INDEX@TOPICS`: a Lucene index (a directory, or the name of one of Pyserini's
      prebuilt ones), and queries with their judgements: a directory with such files as above, `ir_datasets:ID`, or a
      name that Pyserini has topics for; `TOPICS@QRELS` where it has judgements of them by another name.

    Raises:
        UserError: for anything else, or where what it names is broken.
    """
    if not name.strip():
        raise UserError(f"a collection's name is empty; possible are {POSSIBLE}")
    path = user_path(name)
    if name in PYDOCS:
        from data_modules.pydocs import pydocs

        return pydocs(PYDOCS[name])
    if name.startswith(IR_DATASETS):
        return _ir_dataset(name)
    if name.startswith(LUCENE):
        return _lucene(name)
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return Collection(name, _documents(path))
    raise UserError(f"there is no collection {name!r}; possible are {POSSIBLE}")


def open_documents(name: str) -> Mapping[str, Document]:
    """The documents of the collection called `name`; a directory needs no queries."""
    path = user_path(name)
    if name not in PYDOCS and path.is_dir():
        return _documents(_one_of(path, DOCUMENTS))
    return open_collection(name).documents


def _documents(path: Path) -> dict[str, Document]:
    return {document.docid: document for document in DocumentsSource(path)}


def _directory(path: Path) -> Collection:
    return Collection(str(path), _documents(_one_of(path, DOCUMENTS)), *_judged_queries(path))


def _judged_queries(path: Path) -> tuple[dict[str, str], Qrels]:
    """Queries and judgements of a directory; there may be none of the latter."""
    queries = dict(QueriesSource(_one_of(path, QUERIES)))
    if beir := _found(path, BEIR_QRELS):
        # BEIR keeps the queries of all splits in one file.
        qrels = read_beir_qrels(beir)
        return {qid: query for qid, query in queries.items() if qid in qrels}, qrels
    trec = _found(path, TREC_QRELS)
    return queries, read_qrels(trec) if trec else {}


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    if file := _found(folder, names):
        return file
    raise UserError(f"collection {str(folder)!r} lacks {', '.join(names[:-1])} or {names[-1]}")


def _found(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that a folder has."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _ir_dataset(name: str) -> Collection:
    dataset_id = name.removeprefix(IR_DATASETS)
    dataset = irds.load(dataset_id, "docs")
    irds.fetch(dataset_id, dataset, "docs", "queries", "qrels")
    with irds.reading(dataset_id):
        texts = ((document.doc_id, document.default_text()) for document in dataset.docs_iter())
        documents = {docid: Document(docid, text) for docid, text in texts}
        return Collection(name, documents, irds.queries_of(dataset), irds.qrels_of(dataset))


def _lucene(name: str) -> Collection:
    from data_modules import lucene

    index, at, topics = name.removeprefix(LUCENE).partition("@")
    if not index or (at and not topics):
        raise UserError(f"collection {name!r} names no {'topics' if index else 'index'}: it is {LUCENE}INDEX@TOPICS")
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    if user_path(topics).is_dir() and at:
        queries, qrels = _judged_queries(user_path(topics))
    elif topics.startswith(IR_DATASETS):
        dataset_id = topics.removeprefix(IR_DATASETS)
        dataset = irds.load(dataset_id, "queries")
        irds.fetch(dataset_id, dataset, "queries", "qrels")
        with irds.reading(dataset_id):
            queries, qrels = irds.queries_of(dataset), irds.qrels_of(dataset)
    elif at:
        queries, qrels = lucene.topics(*topics.split("@", 1))
    return Collection(name, lucene.open_index(index), queries, qrels)
