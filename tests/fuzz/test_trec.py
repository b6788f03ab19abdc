"""Runs and qrels: good numbers or one named error, whatever stands in the columns."""

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from data_modules.trec import in_order, read_beir_qrels, read_qrels, read_run, write_run
from tests.fuzz.inputs import fuzz, mangled, survives

names = st.one_of(st.sampled_from([b"q1", b"q2", b"a", b"b", b"0", b"Q0", b"x" * 5000]), st.binary(max_size=8))
scores = st.one_of(
    st.floats().map(lambda score: repr(score).encode()),
    st.integers().map(lambda score: str(score).encode()),
    st.sampled_from(
        [b"nan", b"-inf", b"Infinity", b"1e39", b"1e999999999999", b"1_0", b"0x10", "١".encode(), b"+1.", b"."]
    ),
    st.binary(max_size=8),
)


@st.composite
def files(draw: st.DrawFn, columns: int, good: bytes) -> bytes:
    """Lines of about so many columns, or a good file mangled."""
    if draw(st.booleans()):
        return draw(mangled(good))
    ends = st.sampled_from([b" ", b"\t", b"  ", b"\x0b", b"\xc2\xa0"])
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        width = columns + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
        cells = [draw(scores if i in (3, 4) else names) for i in range(width)]
        rows.append(b"".join(cell + draw(ends) for cell in cells))
    return b"\n".join(rows)


@fuzz(400)
@given(content=files(6, b"q1 Q0 a 1 2.5 tag\nq1 Q0 b 2 1.5 tag\nq2 Q0 a 1 1 tag\n"))
def test_runs(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    path.write_bytes(content)
    run = survives("run", lambda: read_run(path))
    for ranking in (run or {}).values():
        assert all(math.isfinite(score) for _, score in ranking)
        assert ranking == in_order(ranking)
        assert len(dict(ranking)) == len(ranking)
    if run:  # what was read can be written, unless a name holds other white space
        again = tmp_path / "again.txt"
        if survives("run", lambda: write_run(run, again, "tag") or True):
            assert read_run(again) == run


@fuzz(400)
@given(
    content=files(4, b"q1 0 a 3\nq1 0 b 0\nq2 0 a 1\n"), beir=files(3, b"query-id corpus-id score\nq1 a 3\nq2 b 0\n")
)
def test_qrels(content: bytes, beir: bytes, tmp_path: Path) -> None:
    for read, held in ((read_qrels, content), (read_beir_qrels, beir)):
        path = tmp_path / "qrels.txt"
        path.write_bytes(held)
        qrels = survives("qrels", lambda read=read, path=path: read(path))
        assert all(abs(grade) < 10**9 for grades in (qrels or {}).values() for grade in grades.values())
