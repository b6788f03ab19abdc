"""TREC qrels and runs, read and written as trec_eval takes them."""

import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ctypes import c_float
from pathlib import Path

from data_modules.files import existing_file, read_lines, written
from data_modules.records import RankingRecord
from lit_rerank.errors import UserError

Qrels = dict[str, dict[str, int]]
Ranking = list[tuple[str, float]]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")

MAX_NAME = 4096  # bytes of a qid, a docid or any other column
BEIR_HEADER = "query-id corpus-id score"


def read_qrels(path: str | Path) -> Qrels:
    """Grades by qid and docid, from lines `qid 0 docid grade`."""
    rows = _read_rows(path, "qid 0 docid grade")
    return _grades((place, qid, docid, grade) for place, (qid, _, docid, grade) in rows)


def read_beir_qrels(path: str | Path) -> Qrels:
    """Grades by qid and docid, from lines `query-id corpus-id score` below a header that says so."""
    rows = ((place, *columns) for place, columns in _read_rows(path, BEIR_HEADER))
    return _grades(row for row in rows if row[1:] != tuple(BEIR_HEADER.split()))


def _grades(rows: Iterable[tuple[str, ...]]) -> Qrels:
    """Judgements from (place, qid, docid, grade)."""
    qrels: Qrels = {}
    for place, qid, docid, grade in rows:
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", grade):
            raise UserError(f"{place}: the grade must be a whole number, not {reprlib.repr(grade)}")
        if qrels.setdefault(qid, {}).setdefault(docid, int(grade)) != int(grade):
            raise UserError(f"{place}: docid {docid!r} of query {qid!r} has another grade further up")
    return qrels


def read_run(path: str | Path) -> dict[str, Ranking]:
    """Rankings by qid, from lines `qid Q0 docid rank score tag`, in trec_eval's order: it ignores the rank."""
    run: dict[str, dict[str, float]] = {}
    for place, (qid, _, docid, _, score, _) in _read_rows(path, "qid Q0 docid rank score tag"):
        scores = run.setdefault(qid, {})
        if docid in scores:
            raise UserError(f"{place}: query {qid!r} lists docid {docid!r} twice")
        scores[docid] = _score(score, place)
    return {qid: in_order(list(scores.items())) for qid, scores in run.items()}


def check_writable(candidates: Iterable[RankingRecord]) -> None:
    """Raise a UserError where rankings of these lists could not be written as a run: better before than after."""
    qids: set[str] = set()
    for record in candidates:
        if record.qid in qids:
            raise UserError(f"query {record.qid!r} has two lists of candidates")
        qids.add(record.qid)
        for name in (record.qid, *(passage.docid for passage in record.passages)):
            _check_name(name)


def write_run(run: Mapping[str, Sequence[tuple[str, float]]], path: str | Path, tag: str) -> None:
    """Write rankings, best first, as lines `qid Q0 docid rank score tag`. The file is put in place once it is whole.

    Raises:
        ValueError: for a name that is empty or holds white space, a repeated docid, a score that is not finite,
            or an order that trec_eval would change.
    """
    lines = []
    for qid, ranking in run.items():
        docids = [docid for docid, _ in ranking]
        for name in (qid, tag, *docids):
            _check_name(name)
        if len(set(docids)) < len(docids):
            raise ValueError(f"query {qid!r} lists a docid twice")
        if not all(math.isfinite(_single(score)) for _, score in ranking):
            raise ValueError(f"query {qid!r} has a score that is not finite")
        if in_order(ranking) != list(ranking):
            raise ValueError(f"trec_eval would reorder query {qid!r}: its scores must fall from rank to rank")
        lines += [f"{qid} Q0 {docid} {rank} {float(score)!r} {tag}\n" for rank, (docid, score) in enumerate(ranking, 1)]
    with written(Path(path)) as file:
        file.write("".join(lines).encode())


def _check_name(name: str) -> None:
    if name.split() != [name]:
        raise UserError(f"{name!r} is empty or holds white space, which a TREC run cannot: rename that query or docid")
    if "\0" in name or len(name.encode()) > MAX_NAME:
        raise UserError(f"{reprlib.repr(name)} has more than {MAX_NAME} bytes, or holds a zero byte: rename it")


def in_order(ranking: Iterable[tuple[str, float]]) -> Ranking:
    """As trec_eval sorts: score descending, in single precision; ties by docid descending."""
    return sorted(ranking, key=lambda item: (_single(item[1]), item[0]), reverse=True)


def _single(score: float) -> float:
    return c_float(score).value


def _score(written: str, place: str) -> float:
    if not _NUMBER.fullmatch(written) or not math.isfinite(_single(float(written))):
        raise UserError(f"{place}: the score must be a finite number, not {reprlib.repr(written)}")
    return float(written)


def _read_rows(path: str | Path, layout: str) -> Iterator[tuple[str, list[str]]]:
    """`file:line` and columns of each line that is not blank. Bytes split on ASCII white space only, as C does."""
    columns = layout.split()
    for place, line in read_lines(existing_file(path)):
        row = line.split()
        if len(row) != len(columns):
            raise UserError(f"{place}: has {len(row)} columns, not the {len(columns)} of `{layout}`")
        if max(map(len, row)) > MAX_NAME or b"\0" in line:  # trec_eval's code would cut the name there
            raise UserError(f"{place}: a name of more than {MAX_NAME} bytes, or one that holds a zero byte")
        try:
            yield place, [column.decode() for column in row]
        except UnicodeDecodeError:
            raise UserError(f"{place}: not UTF-8") from None
