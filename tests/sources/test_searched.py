"""What a first stage finds in a collection, as a source of records."""

import json
from pathlib import Path

import pytest

from data_modules.first_stage import Bm25
from data_modules.pydocs import pydocs
from data_modules.sources import SearchedSource
from lit_rerank.errors import UserError


def test_lists_are_the_first_stages_with_judgements() -> None:
    collection = pydocs("val")
    records = list(SearchedSource("pydocs/val", depth=5))
    assert records == Bm25(collection).search(collection.queries, 5)
    assert [r.qrels for r in records] == [collection.qrels[r.qid] for r in records]


def test_shuffled_lists_hold_the_same_candidates_in_another_order_each_time_the_same() -> None:
    source = SearchedSource("pydocs/val", depth=8, shuffle=3)
    plain, shuffled = list(SearchedSource("pydocs/val", depth=8)), list(source)
    assert list(source) == shuffled
    assert [set(r.passages) for r in shuffled] == [set(r.passages) for r in plain]
    moved = sum(s.passages != p.passages for s, p in zip(shuffled, plain, strict=True))
    assert moved > len(plain) // 2


def test_judgements_can_teach() -> None:
    for record in SearchedSource("pydocs/val", depth=8, teacher="qrels"):
        grades = [(record.qrels or {}).get(record.passages[i - 1].docid, 0) for i in record.permutation or ()]
        assert grades == sorted(grades, reverse=True)


def test_a_query_that_nobody_judged_teaches_nothing(tmp_path: Path) -> None:
    documents = [{"docid": f"d{i}", "text": f"fleas live for {i} days"} for i in range(3)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "queries.tsv").write_text("q1\thow long do fleas live\nq2\twhere do fleas live\n")
    with pytest.raises(UserError, match="teacher is 'qrels', but there are no qrels"):
        SearchedSource(str(tmp_path), teacher="qrels")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\n")
    with pytest.raises(
        UserError, match="query 'q2' is not judged, so qrels teach no order; `on_error: skip` leaves it out"
    ):
        list(SearchedSource(str(tmp_path), teacher="qrels"))
    source = SearchedSource(str(tmp_path), teacher="qrels", on_error="skip")
    assert [record.qid for record in source] == ["q1"]
    assert len(source.skipped) == 1


def test_what_is_shuffled_has_no_teacher() -> None:
    with pytest.raises(UserError, match="shuffle is 3 and teacher 'qrels': what is shuffled has no teacher"):
        SearchedSource("pydocs/val", teacher="qrels", shuffle=3)


def test_an_unknown_first_stage() -> None:
    with pytest.raises(UserError, match="there is no first stage 'x'"):
        SearchedSource("pydocs/val", first_stage="x")
