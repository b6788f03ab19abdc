"""evaluate.py compare: runs and judgements in; figures, pictures and a page out."""

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from PIL import Image

from data_modules.choices import WindowChoices, write_choices
from data_modules.collection import Collection, Document
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_run, write_run
from lit_rerank.cli import evaluate
from lit_rerank.comparison.page import MOST_QUERIES
from lit_rerank.comparison.systems import named_files
from lit_rerank.comparison.texts import read_texts
from lit_rerank.errors import UserError
from lit_rerank.evaluation.rerank import in_first_stage_order
from tests.test_evaluation import write_collection

HOSTILE = '<script>alert("q")</script> & <b>'
BOTH = ("{here}/a.txt", "{here}/b.txt")
PASSAGE = {"docid": "d1", "text": "T"}
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page that must be well-formed: every element is closed where it was opened."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(file.read_text())
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def count(self, tag: str, kind: str | None = None) -> int:
        return sum(name == tag and (kind is None or attrs.get("class") == kind) for name, attrs in self.elements)

    def text(self) -> str:
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))


def compare(tmp_path: Path, *words: str) -> tuple[dict[str, Any], Page]:
    metrics = tmp_path / "out" / "compared.json"
    evaluate(["compare", *words, "--qrels", str(tmp_path / "qrels.txt"), "--metrics", str(metrics)])
    return json.loads(metrics.read_text()), Page(metrics.with_suffix(".html"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Judgements of q1 to q4, and two runs: `a` lacks q4, `b` lacks q3, both have q5."""
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 1\nq3 0 d1 1\nq4 0 d1 3\nq4 0 d9 1\n")
    ranking = [("d1", 3.0), ("d2", 2.0), ("d3", 1.0)]
    turned = [("d3", 3.0), ("d2", 2.0), ("d1", 1.0)]
    write_run({"q1": turned, "q2": ranking, "q3": ranking, "q5": ranking}, tmp_path / "a.txt", "a")
    write_run({"q1": ranking, "q2": ranking, "q4": ranking, "q5": ranking}, tmp_path / "b.txt", "b")
    return tmp_path


def test_missing_queries_count_0_and_are_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = compare(files, str(files / "a.txt"), str(files / "b.txt"), "--measures+", "RR")
    a, b = result["systems"]["a"], result["systems"]["b"]
    assert (a["missing"], a["unjudged"], b["missing"], b["unjudged"]) == (["q4"], ["q5"], ["q3"], ["q5"])
    assert a["means"]["RR"]["mean"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)
    assert b["means"]["RR"]["mean"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    (one,) = result["comparisons"]
    assert (one["system"], one["wins"], one["ties"], one["losses"]) == ("b", 2, 1, 1)
    assert result["per_query"]["q4"] == {"a": {"RR": 0.0}, "b": {"RR": 1.0}}
    assert result["queries"] == 4
    said = capsys.readouterr().out
    assert "a: 1 judged queries are missing and count 0: q4" in said
    assert "b: 1 queries have no judgement and do not count: q5" in said
    assert "lacks 1 of the judged queries, which count 0: q4" in re.sub(r"\s+", " ", page.text())


def test_means_are_ir_measures(tmp_path: Path, files: Path) -> None:
    names = ["nDCG@10", "RR@10", "AP(rel=2)", "P@5", "R@10"]
    result, _ = compare(files, str(files / "a.txt"), str(files / "b.txt"), "--measures", json.dumps(names))
    measures = [ir_measures.parse_measure(name) for name in names]
    for name in ("a", "b"):
        official = ir_measures.calc_aggregate(
            measures,
            ir_measures.read_trec_qrels(str(files / "qrels.txt")),
            ir_measures.read_trec_run(str(files / f"{name}.txt")),
        )
        means = {measure: figures["mean"] for measure, figures in result["systems"][name]["means"].items()}
        assert means == pytest.approx({str(measure): value for measure, value in official.items()}, abs=1e-9)


def test_real_first_stages(tmp_path: Path, shared_data: Path) -> None:
    trec = shared_data / "trec-dl"
    lists = {name: trec / f"dl21.{name}.top100.jsonl.gz" for name in ("bm25", "splade_pp_ed")}
    for name, file in lists.items():
        write_run(in_first_stage_order(list(open_candidates(file))), tmp_path / f"{name}.txt", name)
    (tmp_path / "qrels.txt").write_text((trec / "qrels.dl21.txt").read_text())
    texts = json.dumps([str(file) for file in lists.values()])
    runs = [str(tmp_path / f"{name}.txt") for name in lists]
    result, page = compare(tmp_path, *runs, "--candidates", texts, "--logdir", str(tmp_path / "board"))
    means = [system["means"]["nDCG@10"]["mean"] for system in result["systems"].values()]
    assert means == pytest.approx([0.4458, 0.6839], abs=5e-5)
    one = result["comparisons"][0]
    assert (one["wins"] + one["ties"] + one["losses"], one["measure"]) == (53, "nDCG@10")
    assert one["difference"] == pytest.approx(means[1] - means[0])
    assert one["interval"][0] < one["difference"] < one["interval"][1]
    assert one["p"] <= one["p_corrected"] < 0.001
    # Each query has a row for each measure and a block with two lists of ten, closed at first.
    assert page.count("details", "query") == 53
    assert not [attrs for tag, attrs in page.elements if attrs.get("class") == "query" and "open" in attrs]
    assert page.count("tr") == 1 + 4 + 2 * (1 + 53)
    assert page.count("div", "passage") == 53 * 2 * 10
    assert page.count("svg") == 2
    first = next(open_candidates(lists["bm25"]).__iter__())
    assert first.query in page.text()
    assert first.passages[0].text[:80] in page.text()
    board = b"".join(file.read_bytes() for file in (tmp_path / "board").iterdir())
    tested = (b"compare/RR@10/splade_pp_ed/difference", b"compare/nDCG@10/splade_pp_ed/p_corrected")
    for tag in (b"compare/nDCG@10/bm25", b"compare/RR@10/splade_pp_ed", *tested, b"compare/systems", b"compare/deltas"):
        assert tag in board


def test_a_real_run_against_itself(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "qrels.txt").write_text((shared_data / "cranfield" / "qrels.txt").read_text())
    run = read_run(shared_data / "cranfield" / "run.bm25.txt")
    write_run(run, tmp_path / "same.txt", "same")
    words = [f"bm25={shared_data / 'cranfield' / 'run.bm25.txt'}", str(tmp_path / "same.txt")]
    result, page = compare(tmp_path, *words, "--measures+", "nDCG@10")
    assert result["systems"]["bm25"]["means"]["nDCG@10"]["mean"] == pytest.approx(0.4041, abs=5e-5)
    one = result["comparisons"][0]
    assert (one["ties"], one["p_corrected"], one["difference"], one["effect_size"]) == (
        result["queries"],
        1.0,
        0.0,
        0.0,
    )
    assert page.count("div", "passage") == 0  # docids alone, where no texts are given


def test_a_collection_brings_judgements_and_texts(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "fleas")
    for name, docid in (("a", "d0"), ("b", "d1")):
        write_run({"q1": [(docid, 1.0)], "q2": [("d3", 1.0)]}, tmp_path / f"{name}.txt", name)
    words = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--metrics", str(tmp_path / "out.json")]
    evaluate(["compare", *words, "--collection", str(folder)])
    result, said = json.loads((tmp_path / "out.json").read_text()), Page(tmp_path / "out.html").text()
    assert [system["means"]["RR@10"]["mean"] for system in result["systems"].values()] == [1.0, 0.0]
    assert result["qrels"] == str(folder)
    assert "fleas and document number1" in said
    with pytest.raises(SystemExit, match="name --qrels FILE, or a --collection that has judgements"):
        evaluate(["compare", *words])
    (folder / "qrels.txt").unlink()
    with pytest.raises(SystemExit, match="fleas holds no judgement"):
        evaluate(["compare", *words, "--collection", str(folder)])


class OnlyAsked(Mapping[str, Document]):
    """Documents that are read when they are asked for, as an index's; one has no text."""

    def __getitem__(self, docid: str) -> Document:
        if docid == "bare":
            raise UserError("the index does not store its text")
        if docid != "d":
            raise KeyError(docid)
        return Document("d", "Fleas bite.")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("millions of documents")

    __len__ = __iter__  # type: ignore[assignment]


def test_texts_of_an_index_are_read_when_they_are_shown() -> None:
    texts = read_texts([], Collection("index", OnlyAsked(), {"q": "fleas"}), {"q": {"d": 1}})
    assert texts.queries == {"q": "fleas"}
    assert [texts.passage("q", docid) for docid in ("d", "bare", "gone")] == ["Fleas bite.", None, None]


def write_hostile(files: Path) -> list[str]:
    """Candidates and a choices file whose every text is markup, and the words that name a system so."""
    (files / "qrels.txt").write_text("q1 0 </script><i> 2\nq1 0 d2 0\n<img/src=x> 0 d2 1\n")
    ranking = [("</script><i>", 2.0), ("d2", 1.0)]
    for name in ("a", "b"):
        write_run({"q1": ranking, "<img/src=x>": ranking}, files / f"{name}.txt", name)
    rows = [
        {
            "qid": qid,
            "query": HOSTILE,
            "candidates": [{"docid": d, "text": f"{HOSTILE}{d}\x85\x00"} for d, _ in ranking],
        }
        for qid in ("q1", "<img/src=x>")
    ]
    (files / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    docids = tuple(docid for docid, _ in ranking)
    write_choices([WindowChoices("q1", 0, docids, (1, 2), 2, (-0.1, 0.0))], files / "choices.jsonl")
    named = "<script>$x_1$--></svg>"
    return [
        f"{named}={files / 'a.txt'}",
        str(files / "b.txt"),
        f"--choices=[{json.dumps(f'{named}={files}/choices.jsonl')}]",
    ]


def test_of_many_queries_the_lists_that_differ_most_are_shown(tmp_path: Path) -> None:
    """Else the page of ten thousand queries would be a hundred megabytes."""
    qids = [f"q{number}" for number in range(MOST_QUERIES + 5)]
    unlike = qids[3::40]
    own = {qid: [("a", 2.0), ("b", 1.0)] for qid in qids}
    write_run(own, tmp_path / "a.txt", tag="a")
    write_run(own | {qid: [("b", 2.0), ("a", 1.0)] for qid in unlike}, tmp_path / "b.txt", tag="b")
    (tmp_path / "qrels.txt").write_text("".join(f"{qid} 0 a 1\n" for qid in qids))
    _, page = compare(tmp_path, str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert page.count("details", "query") == MOST_QUERIES
    assert f"Of {len(qids)} queries, the {MOST_QUERIES} with the largest differences in nDCG@10" in page.text()
    anchors = {attrs["href"] for tag, attrs in page.elements if tag == "a"}
    assert {f"#query-{qids.index(qid)}" for qid in unlike} <= anchors
    shown = [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "query" and "id" in attrs]
    assert anchors == {f"#{name}" for name in shown}


def test_a_page_is_whole_and_safe_whatever_the_texts_are(files: Path) -> None:
    result, page = compare(files, *write_hostile(files), "--candidates", str(files / "c.jsonl"))
    assert result["baseline"] == "<script>$x_1$--></svg>"
    assert page.count("script") == page.count("style") == 1
    assert page.count("svg") == 4
    assert page.count("img") == page.count("b") == 0
    assert page.count("i") == page.count("span", "track") > 0  # the bars of differences, and no other
    said = page.text()
    for text in (HOSTILE, "<img/src=x>", "</script><i>", "<script>$x_1$--></svg>"):
        assert text in said
    # Nothing is fetched, and nothing could be.
    policy = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]
    links = [value for _, attrs in page.elements for name, value in attrs.items() if re.search("src$|href$", name)]
    assert links
    assert all(value and value.startswith("#") for value in links)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {attrs["href"] for tag, attrs in page.elements if tag == "a"}
    assert anchors == {"#query-0", "#query-1"} <= {f"#{name}" for name in ids}


def test_pictures_and_choices(files: Path) -> None:
    chosen = [WindowChoices("q1", 0, ("d1", "d2", "d3"), (3, 2, 1), 3, (-0.1, -0.2, 0.0))]
    write_choices(chosen, files / "choices.jsonl")
    words = [str(files / "a.txt"), str(files / "b.txt"), "--baseline", "b", f'--choices=["a={files}/choices.jsonl"]']
    result, page = compare(files, *words)
    assert list(result["systems"]) == ["b", "a"]
    shown = result["choices"]["a"]
    assert (shown["judged_choices"], shown["accuracy"]) == (2, 0.0)
    assert shown["positions"] == [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    for name in ("systems", "deltas", "reliability", "positions"):
        with Image.open(files / "out" / f"compared.{name}.png") as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 3
    assert "Where in the window the picks stand" in page.text()
    assert page.count("svg") == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{here}/a.txt"], "there is nothing to compare: name two or more runs"),
        (["{here}/a.txt", "{here}/a.txt"], r"a\.txt are both called 'a': write NAME="),
        ([*BOTH, "--baseline", "c"], "baseline: no run is called 'c'; there are a, b"),
        ([*BOTH, '--choices=["c={here}/a.txt"]'], "choices: no run is called 'c'"),
        (["{here}/a.txt", "{here}/none.txt"], r"none\.txt does not exist"),
        (["{here}/a.txt", "{here}/twice.txt"], r"twice\.txt:2: query 'q1' lists docid 'd1' twice"),
        (["{here}/a.txt", "{here}/nan.txt"], r"nan\.txt:1: the score must be a finite number, not 'nan'"),
        (["{here}/a.txt", "{here}/other.txt"], r"none of the 1 queries of .*other\.txt is judged"),
        (["{here}/a.txt", "{here}/empty.txt"], r"none of the 0 queries of .*empty\.txt is judged"),
        ([*BOTH, "--measures+", "nDGC@10"], "there is no measure 'nDGC@10'"),
        ([*BOTH, "--measures", "[]"], "name at least one measure"),
        ([*BOTH, "--metrics", "{here}/x.html"], r"x\.html: name a \.json file"),
        ([*BOTH, '--choices=["b={here}/c.jsonl"]'], "orders the passages of query 'q3' otherwise than"),
        ([*BOTH, '--choices=["b={here}/of_a.jsonl"]'], r"query 'q1' otherwise than .*b\.txt does"),
        ([*BOTH, "--candidates", "{here}/texts.jsonl"], "none of the 1 queries of .*texts.jsonl is"),
        ([*BOTH, "--collection", "{here}/fleas"], "none of the 1 queries of .*fleas is judged"),
        ([*BOTH, "--metrics", "{here}/a.json", "--candidates", "{here}/a.json"], "would overwrite"),
        ([*BOTH, '--choices=["b={here}/empty.txt"]'], r"empty\.txt holds no choices"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(files: Path, words: list[str], message: str) -> None:
    (files / "twice.txt").write_text("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n")
    (files / "nan.txt").write_text("q1 Q0 d1 1 nan x\n")
    (files / "other.txt").write_text("q9 Q0 d1 1 1 x\n")
    (files / "empty.txt").touch()
    write_choices([WindowChoices("q3", 0, ("d1", "d2"), (1, 2), 2)], files / "c.jsonl")
    write_choices([WindowChoices("q1", 0, ("d1", "d2", "d3"), (3, 2, 1), 3)], files / "of_a.jsonl")
    (files / "texts.jsonl").write_text(json.dumps({"qid": "q9", "query": "Q", "candidates": [PASSAGE]}) + "\n")
    write_collection(files / "fleas")
    (files / "fleas" / "queries.tsv").write_text("q9\tfleas\n")
    metrics = ["--metrics", str(files / "out.json")]
    said = [word.format(here=files) for word in words]
    with pytest.raises(SystemExit, match=message) as stop:
        evaluate(["compare", "--qrels", str(files / "qrels.txt"), *metrics, *said])
    assert "\n" not in str(stop.value)
    assert not (files / "out.json").exists()


def test_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1").mkdir()
    Path("lr=1/run.txt").touch()
    assert named_files(["x/dl19.run.txt", "b=x/c.txt", "lr=1/run.txt"]) == {
        "dl19.run": "x/dl19.run.txt",
        "b": "x/c.txt",
        "run": "lr=1/run.txt",
    }
    for word in ("=x", "x="):
        with pytest.raises(UserError, match="write FILE or NAME=FILE"):
            named_files([word])


def test_of_one_query_there_is_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\n")
    for name, docids in (("a", "d1 d2"), ("b", "d2 d1")):
        ranking = [(docid, -float(rank)) for rank, docid in enumerate(docids.split())]
        write_run({"q1": ranking}, tmp_path / f"{name}.txt", name)
    result, page = compare(tmp_path, str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--measures+", "RR@10")
    assert result["systems"]["a"]["means"]["RR@10"] == {"mean": 1.0, "interval": None}
    assert result["comparisons"][0]["interval"] is None
    assert re.search(r"\na +1\.0000 +- *\n", capsys.readouterr().out)
    assert sum(data == "-" for tag, data in page.texts if tag == "td") == 3
    with Image.open(tmp_path / "out" / "compared.systems.png") as picture:
        assert min(picture.size) > 100


def test_many_queries_are_named_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 d1 1\n" for i in range(40)))
    for name in ("a", "b"):
        write_run({"q0": [("d1", 1.0)]}, tmp_path / f"{name}.txt", name)
    compare(tmp_path, str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    said = capsys.readouterr().out
    assert (
        f"a: 39 judged queries are missing and count 0: {', '.join(f'q{i}' for i in range(1, 21))} and 19 more\n"
        in said
    )
