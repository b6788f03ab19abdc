"""Lucene, by way of Pyserini: building an index, searching it, and the topics that Pyserini knows by name.

Pyserini and its Java are started by the first function that needs them, never by importing this module.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from data_modules.collection import Collection, Document
from data_modules.files import new_folder, one_at_a_time, user_path
from data_modules.java import LIBRARY, find_java
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import first_of, text
from data_modules.sources.rank_llm import TEXTS
from data_modules.trec import Qrels, in_order, read_qrels
from lit_rerank.errors import UserError

BATCH = 1000  # documents handed to Java at a time
QUERIES = 100  # searched at a time: Java holds what is found, with its text, until Python has it
BLANK = "".join(map(chr, range(33)))  # what Java trims
CORES = os.cpu_count() or 1
JVM_OPTIONS = (
    "-Xrs",  # Ctrl-C stays Python's
    # Lucene's own way with memory, which newer versions of Java comment on and older ones do not know.
    "-XX:+IgnoreUnrecognizedVMOptions",
    "--sun-misc-unsafe-memory-access=allow",
)
# Prebuilt indexes of other languages than English, by their folders; -en behind the language is a translation.
LANGUAGE = re.compile(r"\.(?:(?:miracl|mrtydi|ciral|hc4)-v\d\.\d|neuclir22)-(?:[a-z]{2}-)?([a-z]{2})\.|\.(zh)wiki-")
BY_WHITE_SPACE = ".miracl-v1.0-yo."  # and not as Yoruba is elsewhere


class LuceneDocuments(Mapping[str, Document]):
    """The documents of a Lucene index by docid, read from it when they are asked for; iteration goes through them all.

    Args:
        folder: the index; one of Pyserini's that is not in English is known by its name, and searched in its language.

    Raises:
        UserError: where there is none, or (on reading) where it does not store what it has indexed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = user_path(folder)
        if not any(self.folder.glob("segments_*")):
            raise UserError(f"{folder} holds no Lucene index; `evaluate.py index` builds one")
        start()
        from pyserini.search.lucene import LuceneSearcher

        with in_java(f"{folder} cannot be opened"):
            self.searcher = LuceneSearcher(str(self.folder))
        if language := _language(self.folder.name):
            self.searcher.set_language(language)

    def __len__(self) -> int:
        return int(self.searcher.num_docs)

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self)):
            with in_java(f"{self.folder}: document number {number} cannot be read"):
                docid = self.searcher.doc(number).docid()
            yield docid

    def __getitem__(self, docid: str) -> Document:
        with in_java(f"{self.folder}: document {docid!r} cannot be read"):
            stored = self.searcher.doc(docid)
            if stored is None:
                raise KeyError(docid)
            raw = stored.raw() or stored.contents()
        try:
            return _document(docid, raw)
        except UserError as error:
            raise UserError(f"{self.folder}: document {docid!r}: {error}") from None


def _language(folder: str) -> str | None:
    """Anserini's name of the language that a prebuilt index is in; None where its name does not tell."""
    if BY_WHITE_SPACE in folder:
        return "sw"  # which Anserini divides by white space, too
    found = LANGUAGE.search(folder)
    return (found[1] or found[2]) if found else None


def _document(docid: str, raw: str | None) -> Document:
    """A document from what an index stores of it: a JSON object, as JsonCollection's, or plain text."""
    if raw is None:
        raise UserError("the index does not store its text; build it with -storeRaw")
    try:
        row = json.loads(raw)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        return Document(docid, raw)
    title = text(row, "title") if row.get("title") is not None else ""
    return Document(docid, text(row, first_of(row, *TEXTS)), title)


class Pyserini:
    """BM25 as Anserini has it, over a Lucene index.

    A collection of an index (`pyserini:INDEX`) is searched there; any other is indexed first, in a temporary folder.
    Documents that share no word with the query are not found, so that a list can be shorter than `depth`.

    Args:
        collection: what is searched.
        k1, b: saturation of word counts, and how much they are normalised by length (defaults: Anserini's).
    """

    def __init__(self, collection: Collection, k1: float = 0.9, b: float = 0.4) -> None:
        self.collection = collection
        documents = collection.documents
        if not isinstance(documents, LuceneDocuments):
            self._temporary = tempfile.TemporaryDirectory(prefix="lit-rerank-", ignore_cleanup_errors=True)
            documents = build_index(documents.values(), Path(self._temporary.name) / "index")
        self.documents = documents
        self.documents.searcher.set_bm25(k1, b)

    def search(self, queries: Mapping[str, str], depth: int) -> list[RankingRecord]:
        """For each query (by qid) the `depth` best documents, best first, scored, with the collection's judgements.

        Raises:
            UserError: where nothing is found for a query.
        """
        if depth < 1:
            raise UserError(f"depth is {depth}; it must be at least 1")
        left = iter(queries.items())
        records: list[RankingRecord] = []
        while chunk := dict(islice(left, QUERIES)):
            found = self._found(chunk, depth)
            records += [self._record(qid, query, found[qid]) for qid, query in chunk.items()]
        return records

    def _found(self, queries: Mapping[str, str], depth: int) -> Mapping[str, Iterable[Any]]:
        """What Lucene finds for each query, all at once; where that fails it does not say for which, so one by one."""
        from jnius import JavaException

        searcher = self.documents.searcher
        try:
            return searcher.batch_search(list(queries.values()), list(queries), depth, CORES)
        except JavaException:
            return {qid: self._hits(qid, query, depth) for qid, query in queries.items()}

    def _hits(self, qid: str, query: str, depth: int) -> Iterable[Any]:
        with in_java(f"{self.documents.folder} cannot be searched for query {qid!r}"):
            return self.documents.searcher.search(query, depth)

    def _record(self, qid: str, query: str, hits: Iterable[Any]) -> RankingRecord:
        ranking = in_order((str(hit.docid), float(hit.score)) for hit in hits)
        if not ranking:
            raise UserError(
                f"Lucene finds nothing in {self.collection.name} for query {qid!r} ({query!r}): none of its words "
                "(stop words are none) is in any document; leave it out"
            )
        passages = (Passage(docid, self.collection.documents[docid].passage.text, score) for docid, score in ranking)
        return RankingRecord(qid, query, tuple(passages), qrels=self.collection.qrels.get(qid))


def build_index(documents: Iterable[Document], folder: str | Path) -> LuceneDocuments:
    """Index title and text of documents as Anserini's JsonCollection does; the texts are stored, too.

    Lucene does not take documents without text. The folder appears whole or not at all.

    Raises:
        UserError: where `folder` holds something already, or no document has text.
    """
    folder = new_folder(folder)
    start()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / "index"
        with in_java(f"{folder} cannot be built"):
            given = _index(documents, new)
        if not given:
            raise UserError("the collection holds no text to index")
        built = LuceneDocuments(new)
        built.searcher.close()
        if len(built) != given:
            raise UserError(f"{folder} is not built: it holds {len(built)} documents, but {given} were to be indexed")
        new.rename(folder)
    return LuceneDocuments(folder)


def _index(documents: Iterable[Document], folder: Path) -> int:
    """Write an index of the documents that have text; how many these are."""
    from pyserini.index.lucene import LuceneIndexer

    indexer = LuceneIndexer(args=["-index", str(folder), "-storeRaw"], threads=CORES)
    passages = (document.passage for document in documents if document.passage.text.strip(BLANK))
    rows = (json.dumps({"id": passage.docid, "contents": passage.text}) for passage in passages)
    given = 0
    while batch := list(islice(rows, BATCH)):
        indexer.add_batch_raw(batch)
        given += len(batch)
    indexer.close()
    (folder / "write.lock").unlink(missing_ok=True)
    return given


def open_index(name: str) -> LuceneDocuments:
    """The index in the directory `name` or, where there is none, the prebuilt one of that name (downloaded once).

    Raises:
        UserError: where there is neither, or the download fails.
    """
    if user_path(name).is_dir():
        return LuceneDocuments(name)
    start()
    from pyserini.prebuilt_index_info import TF_INDEX_INFO
    from pyserini.util import download_prebuilt_index

    if name not in TF_INDEX_INFO:
        raise UserError(
            f"{name!r} is neither the directory of a Lucene index nor one of Pyserini's prebuilt ones for BM25"
        )
    with fetching(f"index {name!r}"):
        folder = download_prebuilt_index(name, verbose=False)
    return LuceneDocuments(folder)


def topics(name: str, judgements: str | None = None) -> tuple[dict[str, str], Qrels]:
    """Queries by qid, and the judgements of that name, by default of the topics' where there are any; downloaded once.

    Raises:
        UserError: where Pyserini knows no such topics or judgements, or cannot get them.
    """
    start()
    # Not get_topics and get_qrels: they make numbers of ids, and a docid's leading zeros are lost.
    from pyserini.search import get_qrels_file
    from pyserini.search._base import JTopicReader, qrels_mapping, topics_mapping

    if name not in topics_mapping:
        raise UserError(f"{name!r} is neither a directory with queries, nor ir_datasets:ID, nor topics of Pyserini")
    if judgements is not None and judgements not in qrels_mapping:
        raise UserError(f"Pyserini has no judgements {judgements!r} for the topics {name!r}")
    with fetching(f"topics {name!r}"):
        rows = JTopicReader.getTopicsWithStringIds(topics_mapping[name])
        # Java's order is no order; numbers of one length are as they count.
        qids = sorted(rows.keySet().toArray(), key=lambda qid: (len(qid), qid))
        queries = {str(qid): _query(name, rows.get(qid)) for qid in qids}
    judgements = judgements or name
    if judgements not in qrels_mapping:
        return queries, {}
    with fetching(f"qrels {judgements!r}"):
        file = get_qrels_file(judgements)
    return queries, read_qrels(file)


def _query(name: str, topic: Any) -> str:
    """What is typed of a topic, a Java map: most readers of Anserini call it the title, some the query."""
    for field in ("title", "query"):
        if (asked := topic.get(field)) is not None:
            return str(asked)
    fields = ", ".join(map(str, topic.keySet().toArray()))
    raise UserError(f"topics {name!r} have neither title nor query, but {fields}: write the queries to a queries.tsv")


@contextmanager
def in_java(failure: str) -> Iterator[None]:
    """What Java throws, as one line that begins with `failure`."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        reason = _reason(error)
        more = "; give Java more memory: JAVA_TOOL_OPTIONS=-Xmx8g" if "OutOfMemoryError" in reason else ""
        raise UserError(f"{failure}: {reason}{more}") from error


@contextmanager
def fetching(what: str) -> Iterator[None]:
    """Whatever a download may bring, as one line; one process at a time, so that the others find what it has got."""
    from pyserini.util import get_cache_home

    cache = Path(get_cache_home())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(cache):
            yield
    except UserError:
        raise
    except Exception as error:  # Java's and urllib's errors share no better ancestor
        raise UserError(
            f"Pyserini cannot get {what}: {_reason(error)}. Files by hand: a directory of an index, and behind @ one "
            "with queries.tsv and qrels.txt, or ir_datasets:ID"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


@cache
def start() -> None:
    """Import Pyserini, on a Java that suits it.

    Raises:
        UserError: where the package or such a Java is missing.
    """
    if find_spec("pyserini") is None:
        raise UserError("searching with Lucene needs a package: pip install 'lit-rerank[pyserini]'")
    import jnius_config

    if not jnius_config.vm_running:
        java = find_java()
        os.environ.update(JAVA_HOME=str(java), JVM_PATH=str(java / LIBRARY))
        jnius_config.add_options(*JVM_OPTIONS)
    with _as_pyserini_wants_it():
        import pyserini.search.lucene  # noqa: F401
    from jnius import autoclass

    # Anserini tells its settings on standard output, Lucene which versions of Java it would like better.
    errors = autoclass("org.apache.logging.log4j.Level").ERROR
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(errors)
    severe = autoclass("java.util.logging.Level").SEVERE
    autoclass("java.util.logging.Logger").getLogger("").setLevel(severe)


@contextmanager
def _as_pyserini_wants_it() -> Iterator[None]:
    """Its import asks for a key of a service that is not used here, and sets up logging for the whole process."""
    root = logging.getLogger()
    level, handlers, key = root.level, list(root.handlers), os.environ.get("OPENAI_API_KEY")
    os.environ.setdefault("OPENAI_API_KEY", "unused")
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        if key is None:
            del os.environ["OPENAI_API_KEY"]
