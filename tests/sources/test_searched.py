"""What a first stage finds in a collection, as a source of records."""

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


def test_an_unknown_first_stage() -> None:
    with pytest.raises(UserError, match="there is no first stage 'x'"):
        SearchedSource("pydocs/val", first_stage="x")
