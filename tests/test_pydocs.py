"""The built-in collection: the same everywhere, whole, and judged as its README says."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import bm25s
import ir_measures
import pytest
import Stemmer
from ir_measures import RR, R, nDCG

from data_modules import pydocs as package
from data_modules.collection import Collection, Document
from data_modules.pydocs import documents, pydocs
from data_modules.pydocs.cut import MAX_WORDS, MIN_LAST, passages
from data_modules.pydocs.walk import entries, fresh_entries, own_doc, signature
from lit_rerank.errors import UserError

HERE = Path(package.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "test")
ANSWERS = 2  # a grade from which a passage helps with the question
DIGEST = """
import hashlib
from data_modules.pydocs import documents
print(hashlib.sha256(repr(list(documents().items())).encode()).hexdigest())
"""


def answering(collection: Collection) -> set[str]:
    return {docid for grades in collection.qrels.values() for docid, grade in grades.items() if grade >= ANSWERS}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "options",
    [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}, {"PYTHONOPTIMIZE": "2"}, {"PYTHONWARNINGS": "error"}],
    ids=str,
)
def test_documents_are_the_same_in_every_process(options: dict[str, str]) -> None:
    here = hashlib.sha256(repr(list(documents().items())).encode()).hexdigest()
    done = python("-c", DIGEST, **options)
    assert (done.stdout.strip(), done.stderr) == (here, "")


def test_what_libraries_change_in_the_standard_library_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def shout(text: str) -> str:
        """In capitals, and with an exclamation mark."""
        return f"{text.upper()}!"

    monkeypatch.setattr("textwrap.shout", shout, raising=False)
    monkeypatch.setattr("textwrap.dedent", shout)
    names = [entry.name for entry in fresh_entries(["textwrap"])]
    assert "textwrap.dedent" in names
    assert "textwrap.shout" not in names


def test_documents_are_made_once() -> None:
    assert documents() is documents() is pydocs("test").documents


@pytest.mark.parametrize(
    ("docid", "words"),
    [
        ("json.dumps", "Serialize ``obj`` to a JSON formatted ``str``"),
        ("pathlib.Path.glob", "matching the given relative pattern"),
        ("str.join", "Concatenate any number of strings"),
        ("collections.Counter.most_common", "List the n most common elements"),
        ("os.path.splitext", "Split the extension from a pathname"),
        ("random.choice", "Choose a random element"),
        ("topic:lambda", "Lambda expressions"),
        ("topic:with", 'The "with" statement is used to wrap'),
    ],
)
def test_known_documents(docid: str, words: str) -> None:
    assert words in documents()[docid].text
    assert documents()[docid].title.startswith(docid)


def test_the_signature_stands_on_the_first_passage() -> None:
    assert documents()["json.dumps"].title.startswith("json.dumps(obj, *, skipkeys=False")
    assert documents()["json.dumps#2"].title == "json.dumps"


@pytest.mark.parametrize(
    "docid",
    [
        "random.Random.choice",  # random.choice
        "builtins.sorted",  # sorted
        "json.encoder.JSONEncoder",  # json.JSONEncoder
        "collections.Counter.__init__",
        "json.JSONEncoder.item_separator",
        "argparse.HelpFormatter._split_lines",
        "os.sys",
        "datetime.datetime.weekday",  # datetime.date.weekday
    ],
)
def test_aliases_private_names_and_inherited_members_stay_out(docid: str) -> None:
    assert docid not in documents()


def test_documents_are_sound() -> None:
    for docid, document in documents().items():
        assert docid == document.docid
        assert docid.split() == [docid]
        assert document.text == " ".join(document.text.split()) != ""
        assert len(document.text.split()) < MAX_WORDS + MIN_LAST
        assert len(document.title) < 200
        assert not re.search(r" at 0x[0-9a-f]+", document.passage.text), "an address differs from run to run"


def test_passages_are_numbered_without_gaps() -> None:
    for docid in documents():
        name, _, number = docid.partition("#")
        if number:
            assert name + (f"#{int(number) - 1}" if number != "2" else "") in documents()


def test_no_paragraph_stands_in_two_topics() -> None:
    texts = Counter(d.text for d in documents().values() if d.docid.startswith("topic:"))
    assert [text for text, count in texts.items() if count > 1] == []


def test_modules_that_are_missing_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert "json.dumps" in [entry.name for entry in fresh_entries(["json", "no_such_module"])]
    assert capfd.readouterr().err == "pydocs leaves out modules that this Python lacks: no_such_module\n"


def test_an_object_is_listed_once() -> None:
    found = entries(["builtins", "random", "json", "json.encoder", "pathlib"])
    assert {"random.choice", "json.JSONEncoder", "sorted", "pathlib.PurePath.stem"} <= set(found)
    assert not {"random.Random.choice", "json.encoder.JSONEncoder", "pathlib.Path.stem"} & set(found)


class _Base:
    """What the base is documented to do."""

    def method(self) -> None:
        """What the method is documented to do."""


class _Copy(_Base):
    __doc__ = _Base.__doc__

    def method(self, wait: float = 1.5, hook: object = object()) -> None:
        pass

    method.__doc__ = _Base.method.__doc__


def test_a_docstring_counts_where_it_is_own() -> None:
    assert own_doc(_Base) == "What the base is documented to do."
    assert own_doc(_Copy) == ""
    assert own_doc(_Base.method) == "What the method is documented to do."
    assert own_doc(_Copy.method, [_Base.method]) == ""
    assert own_doc("a string has that of its type") == ""


def test_signatures_are_short_and_the_same_everywhere() -> None:
    assert signature(_Copy.method) == "(wait=1.5, hook=...)"
    assert signature(subprocess.Popen).endswith(", ...)")
    assert len(signature(subprocess.Popen)) <= 100


def test_long_text_is_cut_at_sentences() -> None:
    sentence = "word " * 49 + "end."
    cut = passages(f"Title\n=====\n\n{' '.join([sentence] * 5)}\n\nA short rest.")
    assert [len(text.split()) for text in cut] == [101, 100, 53]
    assert cut[0].startswith("Title word")
    assert all(text.endswith("end.") for text in cut[:2])
    assert cut[-1].endswith("end. A short rest.")


def test_text_without_sentences_is_cut_anyway() -> None:
    assert [len(text.split()) for text in passages("word " * 250)] == [120, 130]


def test_splits() -> None:
    train, test, both = pydocs("train"), pydocs("test"), pydocs("all")
    assert not set(train.queries) & set(test.queries)
    assert not set(train.queries.values()) & set(test.queries.values())
    assert dict(both.queries) == {**train.queries, **test.queries}
    assert dict(both.qrels) == {**train.qrels, **test.qrels}
    assert len(both.queries) >= 120
    assert not answering(train) & answering(test)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="pydocs has no split 'dev': choose one of train, test, all"):
        pydocs("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
def test_judgements(split: str) -> None:
    lines = (HERE / f"questions.{split}.tsv").read_text().splitlines()
    qids = [line.split("\t")[0] for line in lines]
    assert len(set(qids)) == len(lines)
    collection = pydocs(split)  # type: ignore[arg-type]
    assert set(collection.qrels) == set(collection.queries) == set(qids)
    for grades in collection.qrels.values():
        assert set(grades) <= set(collection.documents)
        assert set(grades.values()) <= {0, 1, 2, 3}
        assert 3 in grades.values()
    judged = [line.split()[0::2] for line in (HERE / f"qrels.{split}.txt").read_text().splitlines()]
    assert len({tuple(pair) for pair in judged}) == sum(map(len, collection.qrels.values()))


def bm25(found: Mapping[str, Document], queries: Mapping[str, str], depth: int = 100) -> dict[str, dict[str, float]]:
    """The run the README's figures were measured on."""
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> object:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

    retriever = bm25s.BM25(k1=0.9, b=0.4)
    retriever.index(tokens([document.passage.text for document in found.values()]), show_progress=False)
    docids = list(found)
    rows, scores = retriever.retrieve(tokens(list(queries.values())), k=depth, show_progress=False)
    return {
        qid: {docids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True)}
        for i, qid in enumerate(queries)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_readme_figures(split: str) -> None:
    readme = (HERE / "README.md").read_text()
    (row,) = re.findall(rf"^\| {split} \|(.*)\|$", readme, re.MULTILINE)
    collection = pydocs(split)  # type: ignore[arg-type]
    measures = (nDCG @ 10, RR @ 10, RR(rel=2) @ 10, R(rel=2) @ 100)
    measured = ir_measures.calc_aggregate(measures, collection.qrels, bm25(collection.documents, collection.queries))
    # Other versions of Python word some docstrings otherwise.
    assert [measured[m] for m in measures] == pytest.approx([float(cell) for cell in row.split("|")], abs=0.02)


def test_readme_counts() -> None:
    readme = (HERE / "README.md").read_text()
    grades = Counter(grade for judged in pydocs("all").qrels.values() for grade in judged.values())
    for grade in range(4):
        assert re.search(rf"^\| {grade} \|.*\| {grades[grade]} \|$", readme, re.MULTILINE)
    questions = [len(pydocs(split).queries) for split in SPLITS]  # type: ignore[arg-type]
    assert f"question: {questions[0]} and {questions[1]} |" in readme
    (count,) = re.findall(r"Linux has (\d+) passages", readme)
    assert len(documents()) == pytest.approx(int(count), rel=0.05)
