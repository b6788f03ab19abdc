"""Weights decide how often a source's records come, and each comes once before any comes again."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules import PermutationDataModule
from data_modules.loading import load
from data_modules.mixture import Mixture, quotas
from data_modules.prepare import prepare
from data_modules.records import RankingRecord
from data_modules.sources import JsonlSource, MixedSource, PairsSource, ShardsSource
from data_modules.sources.own import write_jsonl
from data_modules.sources.preferences import PreferencePair
from data_modules.windows import Augmentation
from lit_rerank.errors import UserError
from tests.tiny import record

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_quotas_are_the_weights_shares_to_one_record_and_fill_an_epoch(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    found = quotas(sizes, weights)
    assert sum(found) == sum(sizes)
    for quota, weight in zip(found, weights, strict=True):
        assert abs(quota - sum(sizes) * weight / sum(weights)) < 1 + 1e-9
    assert quotas(sizes, None) == sizes


@given(SIZES, st.data())
def test_each_record_comes_once_before_any_comes_again(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture(sizes, weights, seed=1)
    drawn = [mixture.record(epoch, place) for epoch in range(5) for place in range(len(mixture))]
    first = 0
    for size in sizes:
        own = [(done, number) for done, number in drawn if first <= number < first + size]
        assert len(set(own)) == len(own)  # once in a pass
        passes = Counter(done for done, _ in own)
        assert [passes[done] for done in range(len(passes) - 1)] == [size] * (len(passes) - 1)
        first += size


def test_without_weights_an_epoch_is_every_record_as_it_stands() -> None:
    mixture = Mixture([3, 2], None, seed=1)
    assert [mixture.record(7, place) for place in range(5)] == [(7, place) for place in range(5)]


@pytest.fixture
def sources(tmp_path: Path) -> list[JsonlSource]:
    """20 records and 4 others."""
    for name, count in (("a", 20), ("b", 4)):
        write_jsonl([record(f"{name}{i}", 4) for i in range(count)], tmp_path / f"{name}.jsonl")
    return [JsonlSource(tmp_path / f"{name}.jsonl") for name in "ab"]


def windows(module: PermutationDataModule, epoch: int) -> list[Any]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [example.window for batch in loader for example in batch]


def test_a_weighted_mixture_trains_by_its_shares(sources: list[JsonlSource], tiny_model: Path) -> None:
    mixed = MixedSource(sources, weights=[1, 3])
    module = PermutationDataModule(train=mixed, tokenizer=str(tiny_model), augmentation=Augmentation(2, 3))
    module.setup("fit")
    seen: Counter[str] = Counter()
    for epoch in range(4):
        drawn = windows(module, epoch)
        counts = Counter(window.qid for window in drawn)
        assert Counter(qid[0] for qid in counts.elements()) == {"a": 6, "b": 18}
        assert {counts[f"b{i}"] for i in range(4)} == {4, 5}
        assert max(count for qid, count in counts.items() if qid[0] == "a") == 1
        assert len(set(drawn)) > 20  # a record that comes again shows another window
        seen += counts
    assert {seen[f"b{i}"] for i in range(4)} == {18}
    assert sum(qid[0] == "a" for qid in seen) == 20  # those that waited have come


def test_weights_may_be_as_large_as_numbers_are() -> None:
    assert quotas([6, 2], [1e308, 1e300]) == [8, 0]
    assert quotas([6, 2], [1e308, 1e308]) == [4, 4]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_source_that_would_give_no_record_is_named(
    sources: list[JsonlSource], tiny_model: Path, tmp_path: Path, streaming: bool
) -> None:
    shards = []
    for source in sources:
        prepare(str(source.path), output=tmp_path / source.path.stem)
        shards.append(ShardsSource(tmp_path / source.path.stem))
    mixed = MixedSource(shards, weights=[1, 1e-300])
    module = PermutationDataModule(train=mixed, tokenizer=str(tiny_model), streaming=streaming)
    module.setup("fit")
    with pytest.raises(UserError, match=r"source 2 of the mixture, of weight 1e-300, gives none of an epoch's 24 reco"):
        module.train_dataloader()


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_impossible_weights_are_refused(sources: list[JsonlSource], weights: list[float]) -> None:
    with pytest.raises(UserError, match="must be 2 numbers above 0, one for each source"):
        MixedSource(sources, weights)


def test_a_weighted_mixture_within_a_mixture_is_refused(sources: list[JsonlSource]) -> None:
    with pytest.raises(UserError, match="a mixture with weights cannot stand in another one"):
        MixedSource([MixedSource(sources, weights=[1, 2]), *sources])


def test_a_source_without_records_cannot_have_a_weight(
    sources: list[JsonlSource], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "none.jsonl").touch()
    mixed = MixedSource([*sources, JsonlSource(tmp_path / "none.jsonl")], weights=[1, 1, 1])
    with pytest.raises(UserError, match="source 3 of the mixture holds no record"):
        PermutationDataModule(train=mixed, tokenizer=str(tiny_model)).setup("fit")


def test_what_shares_no_table_is_not_mixed_in_memory(tmp_path: Path) -> None:
    write_jsonl([record("q", 3)], tmp_path / "windows.jsonl")
    pair = {"prompt": "Order.", "chosen": "[1]", "rejected": "[2]"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    parts = [JsonlSource(tmp_path / "windows.jsonl"), PairsSource(tmp_path / "pairs.jsonl")]
    for mixed in (parts, parts[::-1]):
        with pytest.raises(UserError, match=r"^data\.init_args\.train: mixes rankings and ready-made pairs"):
            load("train", MixedSource(mixed), (RankingRecord, PreferencePair))
