"""The built-in collection: the same everywhere, whole, and judged as its README says."""

import hashlib
import itertools
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import ir_measures
import pytest
from ir_measures import RR, R, nDCG

from data_modules import pydocs as package
from data_modules.collection import Collection
from data_modules.first_stage import Bm25
from data_modules.pydocs import documents, pydocs
from data_modules.pydocs.cut import MAX_WORDS, MIN_LAST, passages
from data_modules.pydocs.walk import entries, fresh_entries, own_doc, signature
from lit_rerank.errors import UserError

HERE = Path(package.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "val", "test")
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


def test_a_short_signature_stands_on_the_first_passage() -> None:
    assert documents()["textwrap.indent"].title == "textwrap.indent(text, prefix, predicate=None)"
    assert documents()["glob.glob"].title == "glob.glob"
    assert documents()["shutil.copytree"].title == documents()["shutil.copytree#2"].title == "shutil.copytree"


def test_a_title_is_short_or_the_name_alone() -> None:
    for document in documents().values():
        name = document.docid.partition("#")[0]
        assert document.title == name or (document.title.startswith(f"{name}(") and len(document.title) <= 48)


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
    parts = [pydocs(split) for split in SPLITS]  # type: ignore[arg-type]
    whole = pydocs("all")
    assert dict(whole.queries) == {qid: query for part in parts for qid, query in part.queries.items()}
    assert dict(whole.qrels) == {qid: grades for part in parts for qid, grades in part.qrels.items()}
    assert len(whole.queries) == len(set(whole.queries.values())) == sum(len(part.queries) for part in parts)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_no_passage_answers_questions_of_two_splits(one: str, other: str) -> None:
    assert not answering(pydocs(one)) & answering(pydocs(other))  # type: ignore[arg-type]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="pydocs has no split 'dev': choose one of train, val, test, all"):
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


@cache
def bm25(split: str, depth: int) -> dict[str, dict[str, float]]:
    """The run the README's figures were measured on."""
    records = _index().search(pydocs(split).queries, depth)  # type: ignore[arg-type]
    return {record.qid: {passage.docid: passage.score or 0.0 for passage in record.passages} for record in records}


@cache
def _index() -> Bm25:
    return Bm25(pydocs())


@pytest.mark.parametrize("split", SPLITS)
def test_readme_figures(split: str) -> None:
    readme = (HERE / "README.md").read_text()
    (row,) = re.findall(rf"^\| {split} \|(.*)\|$", readme, re.MULTILINE)
    collection = pydocs(split)  # type: ignore[arg-type]
    measures = (nDCG @ 10, RR @ 10, RR(rel=2) @ 10, R(rel=2) @ 100)
    measured = ir_measures.calc_aggregate(measures, collection.qrels, bm25(split, 100))
    # Other versions of Python word some docstrings otherwise.
    assert [measured[m] for m in measures] == pytest.approx([float(cell) for cell in row.split("|")], abs=0.02)


def test_readme_counts() -> None:
    readme = (HERE / "README.md").read_text()
    grades = Counter(grade for judged in pydocs("all").qrels.values() for grade in judged.values())
    for grade in range(4):
        assert re.search(rf"^\| {grade} \|.*\| {grades[grade]} \|$", readme, re.MULTILINE)
    questions = [len(pydocs(split).queries) for split in SPLITS]  # type: ignore[arg-type]
    assert "question: {}, {} and {} |".format(*questions) in readme
    lines = [len((HERE / f"qrels.{split}.txt").read_text().splitlines()) for split in SPLITS]
    assert "grade`: {}, {} and {} lines |".format(*lines) in readme
    mean = sum(lines) / sum(questions)
    assert f"The mean is {mean:.1f} judged passages" in readme
    (count,) = re.findall(r"Linux has (\d+) passages", readme)
    assert len(documents()) == pytest.approx(int(count), rel=0.05)
    (unjudged, found) = map(int, re.search(r"today, (\d+) of (\d+) are not judged", readme).groups())  # type: ignore[union-attr]
    best = [(qid, docid) for split in SPLITS for qid, scores in bm25(split, 10).items() for docid in scores]
    qrels = pydocs("all").qrels
    assert len(best) == found
    assert sum(docid not in qrels[qid] for qid, docid in best) == pytest.approx(unjudged, rel=0.1)
