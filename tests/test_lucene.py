"""Lucene, by way of Pyserini: a real index of Cranfield, and where its figures differ from bm25s's."""

import json
import logging
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.catalogue import open_collection
from data_modules.collection import Collection, Document
from data_modules.first_stage import Bm25, open_first_stage
from data_modules.java import find_java
from data_modules.lucene import LuceneDocuments, Pyserini, _language, _query, build_index, fetching, start
from data_modules.records import RankingRecord
from data_modules.trec import in_order, write_run
from lit_rerank.cli import evaluate
from lit_rerank.errors import UserError
from lit_rerank.evaluation.index import index_collection
from lit_rerank.measures import means, parse_measure, per_query
from lit_rerank.metrics import TrecMetrics
from tests.sources.lines import write_lines

ROOT = Path(__file__).resolve().parents[1]
PREBUILT = "msmarco-v1-passage-slim"
Run = dict[str, list[tuple[str, float]]]


@pytest.fixture(scope="session")
def java() -> Path:
    """The Java that Lucene runs on; without it, or without Pyserini, nothing to test."""
    pytest.importorskip("pyserini", reason="Pyserini is not installed: make lucene")
    try:
        home = find_java()
    except UserError as error:
        pytest.skip(str(error))
    return home


@pytest.fixture(scope="session")
def started(java: Path) -> tuple[Any, Any]:
    """What Pyserini's import might change of the process, before and after it."""
    key = os.environ.pop("OPENAI_API_KEY", None)
    states = []
    for step in (lambda: None, start):
        step()
        root = logging.getLogger()
        states.append((root.level, [type(handler) for handler in root.handlers], os.environ.get("OPENAI_API_KEY")))
    if key is not None:
        os.environ["OPENAI_API_KEY"] = key
    return states[0], states[1]


@pytest.fixture(scope="session")
def cranfield(started: Any, shared_data: Path) -> Collection:
    return open_collection(str(shared_data / "cranfield"))


@pytest.fixture(scope="session")
def index(cranfield: Collection, tmp_path_factory: pytest.TempPathFactory) -> LuceneDocuments:
    return build_index(cranfield.documents.values(), tmp_path_factory.mktemp("lucene") / "cranfield")


@pytest.fixture(scope="session")
def records(cranfield: Collection, index: LuceneDocuments) -> list[RankingRecord]:
    """The top 100 of each query of Cranfield."""
    stage = Pyserini(Collection("cranfield", index, cranfield.queries, cranfield.qrels))
    return stage.search(cranfield.queries, 100)


@pytest.fixture
def fleas(started: Any, tmp_path: Path) -> Path:
    """A file of documents as JsonCollection's and, beside it, queries and judgements."""
    write_lines(
        tmp_path / "docs.jsonl",
        {"id": "007", "contents": "The fleas live\u2028long."},
        {"id": "b", "contents": "Dogs have fleas, and fleas bite dogs."},
        {"id": "c", "contents": "  "},
        {"id": "d", "contents": "the"},
    )
    (tmp_path / "queries.tsv").write_text("01\tfleas living\n")
    (tmp_path / "qrels.txt").write_text("01 0 007 2\n")
    return tmp_path


def run_of(records: list[RankingRecord]) -> Run:
    return {record.qid: [(p.docid, p.score or 0.0) for p in record.passages] for record in records}


def ndcg(run: Run, collection: Collection) -> float:
    return means(per_query(run, collection.qrels, [parse_measure("nDCG@10")]))["nDCG@10"]


def test_an_index_of_cranfield(cranfield: Collection, index: LuceneDocuments, records: list[RankingRecord]) -> None:
    full = {docid: document.passage for docid, document in cranfield.documents.items() if document.text}
    assert len(index) == len(full) == 1398
    assert set(index) == full.keys()
    assert all(index[docid].passage == passage for docid, passage in full.items())
    assert "471" not in index
    assert index.get("nothing") is None

    assert len(records) == 225
    assert {len(record.passages) for record in records} == {100}
    assert all(full[passage.docid].text == passage.text for record in records for passage in record.passages)
    assert all(record.qrels == cranfield.qrels[record.qid] for record in records)
    assert ndcg(run_of(records), cranfield) == pytest.approx(0.4027, abs=5e-5)


def test_a_plain_collection_is_indexed_on_the_fly(cranfield: Collection, records: list[RankingRecord]) -> None:
    queries = dict(list(cranfield.queries.items())[:20])
    assert open_first_stage("pyserini", cranfield).search(queries, 100) == records[:20]


class Formula:
    """BM25 on Lucene's words of a collection's documents, with exact lengths or with Lucene's."""

    def __init__(self, documents: Iterator[Document]) -> None:
        from jnius import autoclass
        from pyserini.analysis import Analyzer, get_lucene_analyzer

        small = autoclass("org.apache.lucene.util.SmallFloat")
        self.words = Analyzer(get_lucene_analyzer()).analyze
        self.counts = {document.docid: Counter(self.words(document.passage.text)) for document in documents}
        self.exact = {docid: sum(counts.values()) for docid, counts in self.counts.items()}
        kept = {length: small.byte4ToInt(small.intToByte4(length)) for length in set(self.exact.values())}
        self.rounded = {docid: kept[length] for docid, length in self.exact.items()}
        self.df = Counter(word for counts in self.counts.values() for word in counts)
        self.mean = sum(self.exact.values()) / len(self.exact)

    def scores(self, query: str, lengths: dict[str, int], k1: float = 0.9, b: float = 0.4) -> dict[str, float]:
        n, asked = len(lengths), Counter(self.words(query))
        idf = {word: math.log(1 + (n - self.df[word] + 0.5) / (self.df[word] + 0.5)) for word in asked}
        scores = {}
        for docid, counts in self.counts.items():
            norm = k1 * (1 - b + b * lengths[docid] / self.mean)
            parts = [times * idf[w] * counts[w] / (counts[w] + norm) for w, times in asked.items() if counts[w]]
            if parts:
                scores[docid] = sum(parts)
        return scores


def test_why_lucene_differs_from_bm25s(
    cranfield: Collection, index: LuceneDocuments, records: list[RankingRecord]
) -> None:
    """Each score is the formula's on Lucene's words with Lucene's rounded lengths, rounded to four decimals."""
    formula = Formula(index[docid] for docid in index)
    assert sum(formula.rounded[docid] != length for docid, length in formula.exact.items()) > 1000
    for record in records:
        expected = formula.scores(record.query, formula.rounded)
        found = {passage.docid: passage.score for passage in record.passages}
        assert found == pytest.approx({docid: expected[docid] for docid in found}, abs=6e-5)
        least = min(passage.score or 0.0 for passage in record.passages)
        assert all(score <= least + 6e-5 for docid, score in expected.items() if docid not in found)

    exact: Run = {qid: list(formula.scores(query, formula.exact).items()) for qid, query in cranfield.queries.items()}
    bm25s = run_of(Bm25(cranfield).search(cranfield.queries, 100))
    assert ndcg(run_of(records), cranfield) == pytest.approx(0.4027, abs=5e-5)
    assert ndcg(exact, cranfield) == pytest.approx(0.4031, abs=5e-5)  # what rounding the lengths costs
    assert ndcg(bm25s, cranfield) == pytest.approx(0.4048, abs=5e-5)  # the rest: other words, two empty documents


def test_three_programs_agree_on_what_it_is_worth(
    cranfield: Collection,
    records: list[RankingRecord],
    java: Path,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ir_measures
    from pyserini.eval.trec_eval import trec_eval

    run, qrels = str(tmp_path / "run.txt"), str(shared_data / "cranfield" / "qrels.txt")
    write_run(run_of(records), run, "lucene")
    metric = TrecMetrics(["nDCG@10"])
    for qid, ranking in run_of(records).items():
        metric.update(qid, ranking, cranfield.qrels[qid])
    ours = metric.compute()["nDCG@10"]
    measure = ir_measures.parse_measure("nDCG@10")
    theirs = ir_measures.calc_aggregate([measure], ir_measures.read_trec_qrels(qrels), ir_measures.read_trec_run(run))[
        measure
    ]
    tied = {
        qid: in_order((docid, round(score)) for docid, score in ranking) for qid, ranking in run_of(records).items()
    }
    write_run(tied, tmp_path / "tied.txt", "tied")
    first = TrecMetrics(["RR@10"])
    for qid, ranking in tied.items():
        first.update(qid, ranking, cranfield.qrels[qid])
    monkeypatch.setenv("PATH", f"{java / 'bin'}{os.pathsep}{os.environ['PATH']}")  # it calls `java`
    anserinis = trec_eval(["trec_eval", "-c", "-m", "ndcg_cut.10", qrels, run])
    assert f"{ours:.4f}" == f"{theirs:.4f}" == f"{anserinis:.4f}" == "0.4027"
    cut = trec_eval(["trec_eval", "-c", "-M", "10", "-m", "recip_rank", qrels, str(tmp_path / "tied.txt")])
    assert f"{first.compute()['RR@10']:.4f}" == f"{cut:.4f}"


def test_index_and_rerank_from_the_command_line(fleas: Path, tiny_model: Path) -> None:
    evaluate(["index", "--collection", str(fleas / "docs.jsonl"), "--index", str(fleas / "index"), "--metrics",
              str(fleas / "index.json")])  # fmt: skip
    built = json.loads((fleas / "index.json").read_text())
    assert (built["documents"], built["without_text"]) == (3, 1)

    evaluate(["rerank", "--model", str(tiny_model), "--first_stage", "pyserini", "--collection",
              f"pyserini:{fleas / 'index'}@{fleas}", "--run", str(fleas / "run.txt"), "--metrics",
              str(fleas / "metrics.json")])  # fmt: skip
    measured = json.loads((fleas / "metrics.json").read_text())
    assert (measured["queries"], measured["judged_queries"]) == (1, 1)
    assert measured["first_stage.nDCG@10"] == 1.0  # 007 holds both words
    assert sorted(line.split()[2] for line in (fleas / "run.txt").read_text().splitlines()) == ["007", "b"]


@pytest.mark.parametrize("metrics", ["index", "index/m.json"])
def test_metrics_in_the_index_are_refused(metrics: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^metrics: .* would stand where the index"):
        index_collection("pydocs", str(tmp_path / "index"), str(tmp_path / metrics))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "old").touch()
    with pytest.raises(UserError, match="index holds something already"):
        index_collection("pydocs", str(tmp_path / "index"), str(tmp_path / "elsewhere" / metrics))
    assert list(tmp_path.iterdir()) == [tmp_path / "index"]


def test_an_index_needs_no_queries(fleas: Path) -> None:
    (fleas / "queries.tsv").unlink()
    index_collection(str(fleas), str(fleas / "index"), str(fleas / "index.json"))
    assert json.loads((fleas / "index.json").read_text())["documents"] == 3


def test_an_index_is_a_collection_for_all_that_takes_one(fleas: Path) -> None:
    build_index(open_collection(str(fleas / "docs.jsonl")).documents.values(), fleas / "index")
    collection = open_collection(f"pyserini:{fleas / 'index'}")
    assert sorted(collection.documents) == ["007", "b", "d"]
    assert collection.documents["007"] == Document("007", "The fleas live\u2028long.")
    assert collection.queries == collection.qrels == {}
    (record,) = Bm25(collection).search({"q": "live"}, 1)
    assert record.passages[0].docid == "007"


def test_a_prebuilt_index_by_its_name(fleas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyserini.prebuilt_index_info import TF_INDEX_INFO

    monkeypatch.setenv("PYSERINI_CACHE", str(fleas / "cache"))  # where it would be, had it been downloaded
    known = TF_INDEX_INFO[PREBUILT]
    folder = f"{known['filename'].removesuffix('.tar.gz')}.{known['md5']}"
    documents = open_collection(str(fleas / "docs.jsonl")).documents.values()
    build_index(documents, fleas / "cache" / "indexes" / folder)
    collection = open_collection(f"pyserini:{PREBUILT}@{fleas}")
    (record,) = open_first_stage("pyserini", collection).search(collection.queries, 10)
    assert [passage.docid for passage in record.passages] == ["007", "b"]
    assert record.qrels == {"007": 2}


@pytest.mark.parametrize(
    ("folder", "language"),
    [
        ("lucene-inverted.mrtydi-v1.1-fi.20220928.b5ecc5.0f", "fi"),
        ("lucene-index.miracl-v1.0-yo.20221004.2b2856.0f", "sw"),
        ("lucene-index.ciral-v1.0-yo.20230721.e850ea.0f", "yo"),
        ("lucene-index.neuclir22-ru.20221025.c4a8d0.0f", "ru"),
        ("lucene-index.neuclir22-ru-en.20221025.c4a8d0.0f", "en"),
        ("lucene-index.zhwiki-20181201-paragraphs.0f", "zh"),
        ("lucene-inverted.msmarco-v1-passage.20221004.252b5e.0f", None),
        ("mine-ar", None),
    ],
)
def test_the_language_of_a_prebuilt_index(folder: str, language: str | None) -> None:
    assert _language(folder) == language


def test_a_prebuilt_index_is_searched_in_its_language(java: Path, tmp_path: Path) -> None:
    index = build_index([Document("a", "fleas")], tmp_path / "lucene-index.miracl-v1.0-ar.20221004.2b2856.0f")
    assert index.searcher.object.get_analyzer().getClass().getName().endswith(".ArabicAnalyzer")


COVID = (
    '<topics><topic number="1"><query>fleas origin</query><question>where from</question><narrative>seeking</narrative>'
    "</topic></topics>"
)


@pytest.mark.parametrize(
    ("names", "topics", "content", "qrels", "expected"),
    [
        # It has no title.
        (["covid-round1"], "covid-round1.xml", COVID, "1 0 a 2\n", ({"1": "fleas origin"}, {"1": {"a": 2}})),
        (
            ["dl21", "dl21-passage"],
            "dl21.txt",
            "".join(f"{qid}\tfleas\n" for qid in (100, 99, 7)),
            "7 0 0012 3\n",
            ({"7": "fleas", "99": "fleas", "100": "fleas"}, {"7": {"0012": 3}}),
        ),
    ],
)
def test_topics_and_qrels_by_their_names(
    fleas: Path, names: list[str], topics: str, content: str, qrels: str, expected: tuple[Any, Any]
) -> None:
    """In a process of its own: Anserini looks up the home folder once."""
    cache = fleas / ".cache" / "pyserini" / "topics-and-qrels"  # where they would be, had they been downloaded
    cache.mkdir(parents=True)
    (cache / f"topics.{topics}").write_text(content)
    (cache / f"qrels.{names[-1]}.txt").write_text(qrels)
    code = f"from data_modules.lucene import topics; print(topics(*{names!r}))"
    environment = os.environ | {"JAVA_TOOL_OPTIONS": f"-Duser.home={fleas}"}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, timeout=300)
    assert said.splitlines()[-1] == repr(expected)


def test_topics_without_a_query_are_named(started: Any) -> None:
    from jnius import autoclass

    topic = autoclass("java.util.HashMap")()
    topic.put("vector", "0.1")
    with pytest.raises(UserError, match=r"^topics 'x' have neither title nor query, but vector"), fetching("topics"):
        _query("x", topic)


@pytest.mark.parametrize(
    ("collection", "message"),
    [
        ("pyserini:{here}", "holds no Lucene index; `evaluate.py index` builds one"),
        ("pyserini:", "collection 'pyserini:' names no index: it is pyserini:INDEX@TOPICS"),
        ("pyserini:@dl21", "names no index"),
        ("pyserini:{here}/index@", "names no topics"),
        ("", "a collection's name is empty; possible are pydocs, "),
        ("pyserini:nowhere", "'nowhere' is neither the directory of a Lucene index nor one of Pyserini's prebuilt"),
        ("pyserini:{here}/index@dl21@dl21-nowhere", "Pyserini has no judgements 'dl21-nowhere' for the topics 'dl21'"),
        ("pyserini:{here}/index@nowhere", "'nowhere' is neither a directory with queries, nor ir_datasets:ID, nor"),
        ("pyserini:{here}/index@{here}/index", "lacks queries.jsonl, queries.jsonl.gz, queries.tsv or queries.tsv.gz"),
    ],
)
def test_wrong_names(collection: str, message: str, fleas: Path) -> None:
    build_index([Document("a", "fleas")], fleas / "index")
    with pytest.raises(UserError, match=message):
        open_collection(collection.format(here=fleas))


def test_wrong_use(java: Path, tmp_path: Path) -> None:
    stage = open_first_stage("pyserini", Collection("tiny", {"a": Document("a", "fleas")}))
    with pytest.raises(UserError, match=r"Lucene finds nothing in tiny for query 'q' \('the'\)"):
        stage.search({"q": "the"}, 5)
    with pytest.raises(UserError, match="depth is 0"):
        stage.search({"q": "fleas"}, 0)
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="holds something already"):
        build_index([Document("a", "fleas")], tmp_path)
    (tmp_path / "taken").unlink()
    with pytest.raises(UserError, match="the collection holds no text to index"):
        build_index([Document("a", "")], tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_what_java_throws_is_one_line(java: Path, tmp_path: Path) -> None:
    index = build_index([Document("a", "fleas"), Document("b", "\x00\x1f")], tmp_path / "index")
    assert list(index) == ["a"]
    stage = Pyserini(Collection("tiny", index))
    long = " ".join(f"word{number}" for number in range(1025))
    with pytest.raises(UserError, match=r"index cannot be searched for query 'q2': .*maxClauseCount[^\n]*$"):
        stage.search({"q1": "fleas", "q2": long}, 5)
    next((tmp_path / "index").glob("*.si")).unlink()
    with pytest.raises(UserError, match=r"index cannot be opened: [^\n]*$"):
        LuceneDocuments(tmp_path / "index")


def test_what_an_index_may_store(java: Path) -> None:
    from data_modules.lucene import _document

    assert _document("a", '{"title": "Fleas", "text": "They bite"}').passage.text == "Fleas: They bite"
    assert _document("a", '{"pid": 3, "passage": "They bite"}').text == "They bite"
    assert _document("a", "<DOC>They bite").text == "<DOC>They bite"
    with pytest.raises(UserError, match="build it with -storeRaw"):
        _document("a", None)
    with pytest.raises(UserError, match='"text"'):
        _document("a", '{"id": 3}')


def test_its_import_leaves_nothing_behind(started: tuple[Any, Any], java: Path) -> None:
    before, after = started
    assert after == before
    assert os.environ["JAVA_HOME"] == str(java)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyserini", None)
    start.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'lit-rerank\[pyserini\]'"):
        open_first_stage("pyserini", Collection("tiny", {"a": Document("a", "fleas")}))
    with pytest.raises(UserError, match=r"pip install 'lit-rerank\[pyserini\]'"):
        open_collection("pyserini:msmarco-v1-passage@dl19-passage")


def test_bm25_does_without_it() -> None:
    code = (
        "import sys; from data_modules.catalogue import open_collection; "
        "from data_modules.first_stage import open_first_stage; "
        "open_first_stage('bm25', open_collection('pydocs/val')).search({'q': 'json'}, 3); "
        "print([name for name in ('jnius', 'jnius_config', 'pyserini') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=120) == "[]\n"
