"""Datasets by their ids in the ir_datasets catalogue: one of our own, registered there, so nothing is downloaded."""

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from data_modules.catalogue import open_collection
from data_modules.files import one_at_a_time
from data_modules.records import Passage
from data_modules.sources import IrDatasetsSource
from lit_rerank.errors import UserError

NAME = "lit-rerank-tiny"


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets  # reads that variable

    def file(name: str, content: str) -> Any:
        (tmp_path / name).write_text(content)
        return ir_datasets.util.LocalDownload(tmp_path / name)

    formats = ir_datasets.formats
    docs = formats.TsvDocs(file("docs.tsv", "a\tA\nb\tB\nc\tC\n"))
    queries = formats.TsvQueries(file("queries.tsv", "1\tfirst\n2\tsecond\n"))
    qrels = formats.TrecQrels(file("qrels.txt", "1 0 b 2\n"), {})
    scored = formats.TrecScoredDocs(file("run.txt", "1 Q0 a 1 2 t\n1 Q0 b 2 1 t\n1 Q0 c 3 3 t\n2 Q0 a 1 1 t\n"))
    known = ir_datasets.registry
    known.register(NAME, ir_datasets.Dataset(docs, queries, qrels, scored))
    known.register(f"{NAME}/docs", ir_datasets.Dataset(docs))
    yield ir_datasets
    for name in (NAME, f"{NAME}/docs"):
        del known._registered[name]


def test_first_stage_lists(catalogue: Any) -> None:
    first, second = IrDatasetsSource(NAME, depth=2)
    assert first.passages == (Passage("c", "C", 3.0), Passage("a", "A", 2.0))
    assert (first.query, first.qrels, second.qrels) == ("first", {"b": 2}, None)
    source = IrDatasetsSource(NAME, teacher="qrels", on_error="skip")
    assert [record.permutation for record in source] == [(3, 1, 2)]
    assert len(source.skipped) == 1


def test_a_collection(catalogue: Any) -> None:
    collection = open_collection(f"ir_datasets:{NAME}")
    assert [document.text for document in collection.documents.values()] == ["A", "B", "C"]
    assert collection.queries == {"1": "first", "2": "second"}
    assert collection.qrels == {"1": {"b": 2}}
    assert open_collection(f"ir_datasets:{NAME}/docs").queries == {}


def test_contradicting_judgements(catalogue: Any, tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("1 0 b 2\n1 0 b 2\n1 0 b 0\n")
    with pytest.raises(UserError, match=f"ir_datasets:{NAME} .*: docid 'b' of query '1' is judged 2 and 0"):
        open_collection(f"ir_datasets:{NAME}")


def test_one_process_fetches_and_the_others_wait(catalogue: Any) -> None:
    found: list[Any] = []
    reader = Thread(target=lambda: found.extend(IrDatasetsSource(NAME)))
    with one_at_a_time(catalogue.util.home_path()):
        reader.start()
        reader.join(1.0)
        assert reader.is_alive()
    reader.join()
    assert [record.qid for record in found] == ["1", "2"]


def test_what_the_catalogue_lacks(catalogue: Any) -> None:
    with pytest.raises(UserError, match="ir_datasets has no dataset 'nothing/at-all'"):
        IrDatasetsSource("nothing/at-all")
    with pytest.raises(UserError, match=f"ir_datasets:{NAME}/docs has no queries"):
        IrDatasetsSource(f"{NAME}/docs")


def test_a_file_that_is_gone(catalogue: Any, tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").unlink()
    with pytest.raises(UserError, match=f"ir_datasets:{NAME} cannot be read: ") as raised:
        list(IrDatasetsSource(NAME))
    assert "\n" not in str(raised.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lit-rerank\[ir_datasets\]'"):
        IrDatasetsSource(NAME)


def test_a_score_that_is_no_number(catalogue: Any, tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("1 Q0 a 1 2 t\n1 Q0 b 2 nan t\n")
    with pytest.raises(UserError, match="docid 'b' of query '1' has the score nan"):
        list(IrDatasetsSource(NAME))
