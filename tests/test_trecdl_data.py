"""The training data of the recipes of TREC DL."""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from data_modules.sources import JsonlSource
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_qrels
from data_modules.windows import Augmentation
from lit_rerank.errors import UserError
from scripts import trecdl_data
from scripts.rows import MODEL


def test_the_data_are_of_all_kinds_and_not_what_is_measured(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {"asked": 4, "self_taught": 3, "teachers": 20, "splade": 12, "cranfield": 8, "practice": 10}
    monkeypatch.setattr(trecdl_data, "DRAWN", drawn)
    monkeypatch.setattr(trecdl_data, "LISTED", {"asked": 4, "self_taught": 3, "found": 30, "judged": 20, "teachers": 5})
    in_order = {"asked": 2, "self_taught": 5, "found": 30, "judged": 10, "teachers": 5}
    monkeypatch.setattr(trecdl_data, "IN_ORDER", in_order)
    monkeypatch.setattr(trecdl_data, "ORDERED", 5)
    monkeypatch.setattr(trecdl_data, "PAIRS", 30)
    monkeypatch.setattr(trecdl_data, "ASKED", 6)
    folders = (shared_data / "train", shared_data / "trec-dl", shared_data / "cranfield")
    out = tmp_path / "data"
    trecdl_data.write_data(MODEL, *folders, out)
    trecdl_data.write_judged(shared_data / "trec-dl", out)
    train = list(JsonlSource(out / "train.jsonl.gz"))
    sizes = Counter(len(record.passages) for record in train)
    assert len(train) == 57
    assert sizes[20] == 32  # teachers' windows and SPLADE's
    assert sum(record.choices == 1 for record in train) == 22  # judged and practised: only the first place is known
    listed = list(JsonlSource(out / "lists.jsonl.gz"))
    assert len(listed) == 62
    asked = {record.query for record in open_candidates(shared_data / "trec-dl" / "dl21.bm25.top100.jsonl.gz")}
    ordered = list(JsonlSource(out / "orders.jsonl.gz"))
    assert len(ordered) == 52
    assert not asked & {record.query for record in train + listed + ordered}
    pairs = list(JsonlSource(out / "pointing.jsonl.gz"))
    held_out = list(JsonlSource(out / "pointing.val.jsonl.gz"))
    assert (len(pairs), len(held_out)) == (30, trecdl_data.HELD_OUT)
    assert {len(record.passages) for record in pairs + held_out} == {2}
    grades = read_qrels(shared_data / "trec-dl" / "qrels.dl21.txt")
    judged = list(JsonlSource(out / "judged.jsonl.gz"))
    assert len(judged) > 500
    draw = random.Random(0)
    for record in judged:
        window = Augmentation(min_size=4, max_size=8).draw(record, draw)
        known = grades[record.qid.partition(":")[0]]
        order = [known.get(window.passages[i - 1].docid, 0) for i in window.permutation or ()]
        assert order[0] > 0 == order[-1]
        assert all(above > below for above, below in pairwise(order[: (window.choices or 0) + 1]))
        assert not any(order[window.choices :])
    assert len({record.query for record in JsonlSource(out / "few.jsonl.gz")}) == 16
    for record in trecdl_data.splade(shared_data / "trec-dl" / "dl22.splade_pp_ed.top100.jsonl.gz", of_each=1):
        assert record.permutation == tuple(range(1, 21))
        assert len({passage.text for passage in record.passages}) == 20


def test_what_the_better_retriever_has_at_the_top_stands_above_what_it_has_not(shared_data: Path) -> None:
    lists = shared_data / "trec-dl"
    of_query = {
        name: {record.qid: record for record in open_candidates(lists / f"dl22.{name}.top100.jsonl.gz")}
        for name in ("bm25", "splade_pp_ed")
    }
    windows = list(trecdl_data.found(lists, of_each=2))
    assert len({window.query for window in windows}) > 60
    for window in windows:
        qid = window.qid.partition(":")[0]
        better = [passage.text for passage in of_query["splade_pp_ed"][qid].passages]
        assert {passage.text for passage in window.passages} <= {p.text for p in of_query["bm25"][qid].passages}
        ordered = [window.passages[i - 1].text for i in window.permutation or ()]
        places = [better.index(text) for text in ordered[: window.choices]]
        assert places == sorted(places)
        assert 1 <= len(places) <= 3
        assert places[-1] < trecdl_data.BEST
        assert len(window.passages) == len(set(ordered)) == 8
        assert not set(ordered[window.choices :]) & set(better)


@pytest.mark.parametrize("year", ["dl19", "dl22"])
def test_what_the_better_retriever_finds_stands_in_its_order_above_what_it_does_not(
    year: str, shared_data: Path
) -> None:
    lists = shared_data / "trec-dl"
    of_query = {
        name: {record.qid: record for record in open_candidates(lists / f"{year}.{name}.top100.jsonl.gz")}
        for name in ("bm25", "splade_pp_ed")
    }
    windows = list(trecdl_data.spread(lists, year, of_each=4))
    assert len({window.query for window in windows}) == len(of_query["bm25"])
    known, found_by_both = Counter[int](), {"0": 0, "1": 0}
    for window in windows:
        qid, _, number = window.qid.split(":")
        better = [passage.text for passage in of_query["splade_pp_ed"][qid].passages]
        weaker = {passage.text for passage in of_query["bm25"][qid].passages}
        ordered = [window.passages[i - 1].text for i in window.permutation or ()]
        ranks = [better.index(text) + 1 for text in ordered[: window.choices]]
        assert all(below >= 2 * above for above, below in pairwise(ranks))
        assert len(set(ordered)) == len(window.passages) <= 8
        found_by_both[str(int(number) % 2)] += set(ordered) <= weaker
        assert not set(ordered[window.choices :]) & set(better)
        assert set(ordered[window.choices :]) <= weaker
        known[len(ranks)] += 1
    assert 1 <= min(known) <= max(known) <= trecdl_data.KNOWN
    assert sum(count for choices, count in known.items() if choices > 2) > len(windows) / 2
    odd = sum(int(window.qid.split(":")[2]) % 2 for window in windows)
    assert found_by_both["1"] == odd > 2 * found_by_both["0"] > 0
    assert sum(len(window.passages) == 8 for window in windows) > 0.9 * len(windows)


def test_a_file_that_is_missing_is_named_before_the_model_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dl19\.teacher_windows\.jsonl\.gz does not exist"):
        trecdl_data.write_data("/no/model", tmp_path, tmp_path, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "missing", ["dl19.bm25.top100.jsonl.gz", "dl22.splade_pp_ed.top100.jsonl.gz", "qrels.dl19.txt"]
)
def test_lists_that_are_missing_are_too(missing: str, tmp_path: Path) -> None:
    names = ["dl19.teacher_windows.jsonl.gz", "dl19.passages.jsonl.gz", "qrels.dl19.txt"]
    names += [f"{year}.{name}.top100.jsonl.gz" for year in ("dl19", "dl22") for name in ("bm25", "splade_pp_ed")]
    for name in {*names} - {missing}:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{missing} does not exist"):
        trecdl_data.write_data("/no/model", tmp_path, tmp_path, tmp_path, tmp_path / "out")


def test_too_little_data_is_named() -> None:
    with pytest.raises(UserError, match="splade: there are 0 records, and 400 are wanted"):
        trecdl_data.drawn({"splade": []}, {"splade": 400})
