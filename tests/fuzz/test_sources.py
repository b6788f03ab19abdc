"""Whatever files hold, sources yield good records or one named error."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.choices import ChoicesSource
from data_modules.records import RankingRecord, Window
from data_modules.rows import to_record, to_row
from data_modules.sources import RankGPTSource, TeacherWindowsSource, TrecSource
from data_modules.sources.base import Source
from data_modules.sources.corpus import DocumentsSource, QueriesSource
from data_modules.sources.detect import open_candidates
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.general_text import DocumentsSource as TextSource
from lit_rerank.questions import QuestionsSource
from tests.fuzz.inputs import dumped, fuzz, lines, mangled, mutated, survives, written
from tests.sources.test_broken_lines import AB, READERS, Reader
from tests.tiny import tiny_tokenizer

CHOICES = {"qid": "q1", "turn": 0, "docids": ["a", "b"], "permutation": [2, 1], "choices": 2, "logps": [-0.5, 0.0]}
MORE = {
    "documents": Reader(DocumentsSource, {"_id": "a", "title": "T", "text": "A"}),
    "queries": Reader(QueriesSource, {"qid": "q1", "text": "Q"}),
    "choices": Reader(lambda path, on_error: _skipping(ChoicesSource(path), on_error), CHOICES | {"malformed": False}),
    "questions": Reader(
        QuestionsSource, {"subject": "S", "question": "Q", "choices": ["a", "b", "c", "d"], "answer": 1}
    ),
    "general text": Reader(lambda path, on_error: _skipping(TextSource(path), on_error), {"text": "A"}),
    "any candidates": Reader(
        lambda path, on_error: _skipping(open_candidates(path), on_error),
        {
            "qid": "q1",
            "query": "Q",
            "candidates": AB,
        },
    ),
}
ALL = READERS | MORE


def _skipping(source: Source[Any], on_error: str) -> Source[Any]:
    source.on_error = on_error  # type: ignore[assignment]
    return source


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@fuzz(60)
@given(data=st.data())
def test_lines(name: str, suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    reader = ALL[name]
    rows = data.draw(lines(reader.good))
    path = written(tmp_path / f"data{suffix}", rows)
    survives(name, lambda: list(reader.open(path, "raise")))
    source = survives(name, lambda: reader.open(path, "skip"))
    records = None if source is None else survives(name, lambda: list(source))
    if records is not None:
        held = [row for part in rows for row in part.split(b"\n") if row.strip()]
        assert len(records) + len(source.skipped) == len(held)
        for record in records:
            if isinstance(record, RankingRecord):
                assert len({passage.docid for passage in record.passages}) == len(record.passages)


@pytest.mark.parametrize("name", ["conversations", "rank_llm", "pairs", "messages"])
@fuzz(60)
@given(data=st.data())
def test_arrays(name: str, data: st.DataObject, tmp_path: Path) -> None:
    reader = ALL[name]
    good = [reader.good, reader.good]
    content = data.draw(st.one_of(mutated(good).map(dumped), mangled(dumped(good))))
    path = tmp_path / "data.json"
    path.write_bytes(content)
    for on_error in ("raise", "skip"):
        survives(f"{name} (array)", lambda on_error=on_error: list(reader.open(path, on_error)))


@fuzz(60)
@given(data=st.data())
def test_a_mangled_gzip(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(data.draw(mangled(gzip.compress(dumped(READERS["own"].good) * 3, mtime=0))))
    survives("gzip", lambda: list(READERS["own"].open(path, "skip")))


RANK_GPT = {
    "query": "Q",
    "positive_passages": [{"docid": "a"}],
    "retrieved_passages": [{"docid": "a", "text": "A"}, {"docid": "b", "text": "B"}],
}
WINDOW = {"qid": "q1", "query": "Q", "docids": ["a", "b"], "permutation": [2, 1]}
RUN = b"q1 Q0 a 1 2.5 tag\nq1 Q0 b 2 1.5 tag\nq2 Q0 a 1 1 tag"
TEXTS = [{"docid": "a", "text": "A"}, {"docid": "b", "text": "B"}]


@fuzz(100)
@given(data=st.data())
def test_two_files_that_belong_together(data: st.DataObject, tmp_path: Path) -> None:
    candidates = written(tmp_path / "c.jsonl", data.draw(lines(RANK_GPT)))
    responses = tmp_path / "r.json"
    good = ["[2] > [1]"] * data.draw(st.integers(1, 4))
    responses.write_bytes(data.draw(st.one_of(st.just(dumped(good)), mutated(good).map(dumped), mangled(dumped(good)))))
    windows = written(tmp_path / "w.jsonl", data.draw(lines(WINDOW)))
    passages = written(tmp_path / "p.jsonl", [*map(dumped, TEXTS), *data.draw(lines(TEXTS[0]))])
    for on_error in ("raise", "skip"):
        survives("rank_gpt", lambda on_error=on_error: list(RankGPTSource(candidates, responses, on_error)))
        survives("windows", lambda on_error=on_error: list(TeacherWindowsSource(windows, passages, on_error)))


@fuzz(100)
@given(data=st.data())
def test_a_run_beside_its_documents_queries_and_qrels(data: st.DataObject, tmp_path: Path) -> None:
    def file(name: str, good: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data.draw(st.one_of(st.just(good), mangled(good))))
        return path

    paths = (
        file("run.txt", RUN),
        file("docs.jsonl", b"\n".join(map(dumped, TEXTS))),
        file("queries.tsv", b"q1\tone\nq2\ttwo\n"),
        file("qrels.txt", b"q1 0 a 1\nq2 0 b 0\n"),
    )
    teacher = data.draw(st.sampled_from(["none", "first_stage", "qrels"]))
    for on_error in ("raise", "skip"):
        survives("trec", lambda on_error=on_error: list(TrecSource(*paths, teacher=teacher, on_error=on_error)))


TOKENIZER = tiny_tokenizer()


@fuzz(60)
@given(data=st.data())
def test_what_a_source_yields_can_be_kept_and_shown(data: st.DataObject, tmp_path: Path) -> None:
    """Through the Arrow table of the data modules and the encoder: neither breaks on what a source took for good."""
    import datasets

    path = written(tmp_path / "data.jsonl", data.draw(lines(READERS["own"].good)))
    records: list[RankingRecord] = survives("table", lambda: list(READERS["own"].open(path, "skip"))) or []
    if records:
        table = datasets.Dataset.from_list(list(map(to_row, records)))
        assert list(map(to_record, table)) == records
    for sanitise in (False, True):
        encoder = WindowEncoder(TOKENIZER, PromptSettings(max_passage_tokens=20, sanitise=sanitise), context=2000)
        for record in records:
            window = Window.of(record, range(len(record.passages)))
            encode: Callable[[Window], Any] = encoder.encode if record.permutation else encoder.encode_prompt
            survives("encoder", lambda encode=encode, window=window: encode(window))
