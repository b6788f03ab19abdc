"""Streamed records: each once in an epoch, however many processes, workers and shards there are."""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules import PermutationDataModule, PreferenceDataModule
from data_modules.base import RankingDataModule
from data_modules.mixture import quotas
from data_modules.prepare import prepare
from data_modules.sources import JsonlSource, MessagesSource, MixedSource, PairsSource, ShardsSource
from data_modules.sources.own import write_jsonl
from data_modules.stream import Part, Passes, Stream
from data_modules.windows import Augmentation
from lit_rerank.errors import UserError
from lit_rerank.replay import EncodedConversation
from tests.tiny import record
from tests.training import write_data

MOST = 23  # records of a folder
Key = tuple[str, int, int]  # qid, pass and index of a draw


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Shards by (records, records of a shard), with manifests."""
    folder = tmp_path_factory.mktemp("shards")
    made = {}
    for records in (1, 5, MOST):
        write_jsonl([record(f"q{i}", 2) for i in range(records)], folder / f"{records}.jsonl")
        for size in (1, 4, MOST):
            made[records, size] = folder / f"{records}-{size}"
            prepare(str(folder / f"{records}.jsonl"), output=made[records, size], shard_records=size)
    return made


def key(row: Any, done: int, index: int) -> Key:
    """What stands for an example."""
    return row["qid"], done, index


def stream(
    folder: Path, processes: int = 1, rank: int = 0, per_record: int = 1, batch_size: int = 2, buffer: int = 4
) -> Stream:
    source = ShardsSource(folder)
    size = sum(count or 0 for count in source.counts)
    part = Part(Passes(source, key, per_record, 0, seed=3), size, per_record)
    return Stream([part], processes, rank, batch_size, buffer, seed=3)


def epoch_of(epoch: int, processes: int, workers: int, **options: Any) -> list[list[list[Key]]]:
    """The batches of each process, of which each worker makes its own."""
    ranks = []
    for rank in range(processes):
        made = [stream(processes=processes, rank=rank, **options) for _ in range(max(1, workers))]
        ranks.append([made[number % len(made)][epoch, number] for number in range(len(made[0]))])
    return ranks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.sampled_from([1, 5, MOST]),
    shard=st.sampled_from([1, 4, MOST]),
    processes=st.integers(1, 4),
    workers=st.integers(0, 3),
    epoch=st.integers(0, 3),
    per_record=st.integers(1, 2),
    batch_size=st.integers(1, 4),
    buffer=st.sampled_from([1, 3, 100]),
)
def test_every_record_is_used_exactly_once_an_epoch(
    folders: dict[tuple[int, int], Path],
    records: int,
    shard: int,
    processes: int,
    workers: int,
    epoch: int,
    **options: Any,
) -> None:
    ranks = epoch_of(epoch, processes, workers, folder=folders[records, shard], **options)
    drawn = Counter(example for batches in ranks for batch in batches for example in batch)
    per_record = options["per_record"]
    assert drawn == Counter(
        (f"q{i // per_record}", epoch, i) for i in range(records * per_record)
    )  # the draws of a map-style epoch
    assert len({len(batches) for batches in ranks}) == 1  # no process waits for another that has ended
    per_rank = [sum(map(len, batches)) for batches in ranks]
    assert max(per_rank) - min(per_rank) <= per_record
    for batches in ranks:  # whole batches first, then one that is not, then those that are empty
        assert [len(batch) for batch in batches] == sorted(map(len, batches), reverse=True)
        assert all(len(batch) in (0, options["batch_size"]) for batch in batches[:-2])


def test_the_number_of_workers_changes_nothing(folders: dict[tuple[int, int], Path]) -> None:
    for epoch in (0, 1):
        alone = epoch_of(epoch, 2, 0, folder=folders[MOST, 4])
        assert all(epoch_of(epoch, 2, workers, folder=folders[MOST, 4]) == alone for workers in (1, 2, 3))


def test_a_batch_is_the_same_whenever_it_is_asked_for(folders: dict[tuple[int, int], Path]) -> None:
    one, other = stream(folders[MOST, 4]), stream(folders[MOST, 4])
    keys = [(epoch, number) for epoch in (0, 1) for number in range(len(one))]
    in_turn = {key: one[key] for key in keys}
    assert {key: other[key] for key in reversed(keys)} == in_turn


def test_a_block_is_shuffled_as_a_list_of_its_examples_is(folders: dict[tuple[int, int], Path]) -> None:
    made = stream(folders[MOST, MOST], per_record=3, buffer=MOST)
    shuffled = [(f"q{i // 3}", 0, i) for i in range(3 * MOST)]
    random.Random("3/0/0/0").shuffle(shuffled)
    assert [example for number in range(len(made)) for example in made[0, number]] == shuffled


def test_memory_does_not_depend_on_how_many_examples_a_record_gives(folders: dict[tuple[int, int], Path]) -> None:
    made = stream(folders[MOST, 4], per_record=10_000, buffer=100)
    tracemalloc.start()
    try:
        assert len(made[0, 0]) == 2
        assert tracemalloc.get_traced_memory()[1] < 10e6  # of 230,000 examples
    finally:
        tracemalloc.stop()


def test_epochs_and_seeds_differ_in_order(folders: dict[tuple[int, int], Path]) -> None:
    def order(epoch: int) -> list[str]:
        (batches,) = epoch_of(epoch, 1, 0, folder=folders[MOST, 1], buffer=8)
        return [qid for batch in batches for qid, _, _ in batch]

    first, second = order(0), order(1)
    assert first != sorted(first, key=lambda qid: int(qid[1:]))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_without_a_manifest_passes_follow_each_other_without_end(
    folders: dict[tuple[int, int], Path], tmp_path: Path, layout: str
) -> None:
    if layout == "jsonl":
        lines = [
            json.dumps({"qid": f"q{i}", "query": "x", "passages": [{"docid": "a", "text": "b"}]}) for i in range(5)
        ]
        (tmp_path / "a.jsonl").write_text("\n\n".join(lines[:2]) + "\n")
        (tmp_path / "b.jsonl").write_text("\n".join(lines[2:]), encoding="utf-8-sig")  # as on Windows
    else:
        for file in folders[5, 4].glob("*.parquet"):
            (tmp_path / file.name).write_bytes(file.read_bytes())

    def made(rank: int, first: int = 0) -> list[list[Key]]:
        parts = [Part(Passes(ShardsSource(tmp_path), key, 1, 0, seed=3), quota=20, apart=True)]
        batches = Stream(parts, 2, rank, batch_size=2, buffer=3, seed=3)
        return [batches[0, number] for number in range(first, len(batches))]

    ranks = [made(0), made(1)]
    assert [len(batches) for batches in ranks] == [5, 5]
    drawn = Counter(example[:2] for batches in ranks for batch in batches for example in batch)
    assert drawn == Counter((f"q{i}", done) for i in range(5) for done in range(4))
    assert len({(qid, index) for batches in ranks for batch in batches for qid, _, index in batch}) == 5
    assert made(1, first=3) == ranks[1][3:]  # as a resumed run asks for them


def test_a_mixture_keeps_its_shares_on_every_process_and_in_every_block(
    folders: dict[tuple[int, int], Path],
) -> None:
    sources = [ShardsSource(folders[MOST, 4]), ShardsSource(folders[5, 1])]
    taken = quotas([MOST, 5], [1, 1])
    assert taken == [14, 14]
    seen: list[Counter[str]] = [Counter(), Counter()]
    for epoch in range(5):
        for rank in range(2):
            parts = [
                Part(Passes(source, lambda row, *_, number=number: (number, row["qid"]), 1, 0, seed=3), quota)
                for number, (source, quota) in enumerate(zip(sources, taken, strict=True))
            ]
            made = Stream(parts, 2, rank, batch_size=2, buffer=6, seed=3)
            examples = [example for number in range(len(made)) for example in made[epoch, number]]
            assert Counter(number for number, _ in examples) == {0: 7, 1: 7}
            assert 1 <= sum(number for number, _ in examples[:4]) <= 3
            for number, qid in examples:
                seen[number][qid] += 1
    assert sorted(seen[0].values()) == [3] * 22 + [4]  # 70 of 23 records, in turn
    assert set(seen[1].values()) == {14}


# -- data modules ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/train.jsonl with 11 records, data/train.shards with the same, and more."""
    return write_data(tmp_path_factory.mktemp("stream"), train=11) / "data"


def permutations(data: Path, model: Path, train: Any = None, **options: Any) -> PermutationDataModule:
    options = {"streaming": True, "augmentation": Augmentation(2, 3), "batch_size": 2, "shuffle_buffer": 4} | options
    module = PermutationDataModule(
        train=ShardsSource(data / "train.shards") if train is None else train, tokenizer=str(model), **options
    )
    module.setup("fit")
    return module


def epoch(module: RankingDataModule[Any], number: int = 0) -> list[list[Any]]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return [list(batch) for batch in loader]


def flat(batches: Sequence[Sequence[Any]]) -> list[Any]:
    return [example for batch in batches for example in batch]


def test_streamed_windows_are_those_of_records_in_memory(data: Path, tiny_model: Path) -> None:
    options = {"augmentation": Augmentation(2, 3, windows_per_record=2)}
    streamed = permutations(data, tiny_model, **options)
    assert "train" not in streamed.records
    for source in (JsonlSource(data / "train.jsonl"), ShardsSource(data / "train.shards")):
        memory = permutations(data, tiny_model, source, streaming=False, **options)
        for number in (0, 1):
            one, other = flat(epoch(streamed, number)), flat(epoch(memory, number))
            assert len(one) == 22
            assert {example.window for example in one} == {example.window for example in other}


def test_worker_processes_make_the_same_batches(data: Path, tiny_model: Path) -> None:
    alone = epoch(permutations(data, tiny_model))
    assert [len(batch) for batch in alone] == [2, 2, 2, 2, 2, 1]
    assert epoch(permutations(data, tiny_model, num_workers=2)) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_goes_on_in_the_middle_of_an_epoch(data: Path, tiny_model: Path, workers: int) -> None:
    def loader() -> Any:
        made = permutations(data, tiny_model, num_workers=workers).train_dataloader()
        made.sampler.set_epoch(1)
        return made

    whole = [list(batch) for batch in loader()]
    for taken in (1, 4):
        stopped = loader()
        batches = iter(stopped)
        for _ in range(taken):
            next(batches)
        state = json.loads(json.dumps(stopped.state_dict(), default=str)) if workers == 0 else stopped.state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        assert [list(batch) for batch in resumed] == whole[taken:]
        assert [list(batch) for batch in resumed] == whole  # the next time from the beginning


def test_preferences_and_ready_made_pairs_are_streamed_too(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    module = PreferenceDataModule(
        train=ShardsSource(data / "train.shards"), tokenizer=str(tiny_model), streaming=True, negatives="all"
    )
    module.setup("fit")
    assert all(example.preferences for example in flat(epoch(module)))
    lines = [json.dumps({"prompt": f"What is {i}?", "chosen": str(i), "rejected": "no"}) for i in range(5)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    prepare(str(tmp_path / "pairs.jsonl"), output=tmp_path / "pairs")

    def pairs(train: Any, streaming: bool) -> set[Any]:
        module = PreferenceDataModule(train=train, tokenizer=str(tiny_model), streaming=streaming)
        module.setup("fit")
        return {example.ids for example in flat(epoch(module))}

    streamed = pairs(ShardsSource(tmp_path / "pairs"), True)
    assert len(streamed) == 5
    assert streamed == pairs(PairsSource(tmp_path / "pairs.jsonl"), False)


def test_conversations_are_mixed_in(data: Path, tiny_model: Path) -> None:
    options = {"replay": MessagesSource(data / "replay.jsonl"), "replay_share": 0.35}
    module = permutations(data, tiny_model, **options)
    memory = permutations(data, tiny_model, JsonlSource(data / "train.jsonl"), streaming=False, **options)
    for number in (0, 1):
        one, other = (
            {example.ids for example in flat(epoch(m, number)) if isinstance(example, EncodedConversation)}
            for m in (module, memory)
        )
        assert one == other
        assert len(flat(epoch(module, number))) == 11 + 6


def place(module: RankingDataModule[Any], max_steps: int = -1) -> None:
    """Give a data module a trainer of one process."""
    module.trainer = L.Trainer(
        accelerator="cpu", accumulate_grad_batches=2, max_steps=max_steps, logger=False, enable_checkpointing=False
    )


def test_without_a_manifest_the_number_of_steps_is_needed(data: Path, tiny_model: Path) -> None:
    module = permutations(data, tiny_model, ShardsSource(data / "train.jsonl"))
    message = r"train.jsonl has no manifest.json, so nobody knows how long an epoch is: set trainer.max_steps, or"
    with pytest.raises(UserError, match=message):
        module.train_dataloader()
    place(module)
    with pytest.raises(UserError, match=message):
        module.train_dataloader()
    place(module, max_steps=6)
    batches = epoch(module)
    assert [len(batch) for batch in batches] == [2] * 12
    assert Counter(Counter(example.window.qid for example in flat(batches)).values()) == {2: 9, 3: 2}


def test_a_mixture_without_manifests_needs_weights(data: Path, tiny_model: Path) -> None:
    sources = [ShardsSource(data / "train.jsonl"), ShardsSource(data / "val.jsonl")]
    module = permutations(data, tiny_model, MixedSource(sources))
    place(module, max_steps=6)
    with pytest.raises(UserError, match="nobody knows its share: set the weights of MixedSource"):
        module.train_dataloader()
    module = permutations(data, tiny_model, MixedSource(sources, weights=[1, 2]))
    place(module, max_steps=6)
    assert Counter(example.window.qid[0] for example in flat(epoch(module))) == {"t": 8, "v": 16}


def test_other_sources_and_missing_ones_are_named(data: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"data.streaming reads shards: set data.init_args.train to"):
        permutations(data, tiny_model, JsonlSource(data / "train.jsonl")).train_dataloader()
    module = PermutationDataModule(tokenizer=str(tiny_model), streaming=True)
    module.setup("fit")
    with pytest.raises(UserError, match=r"data.init_args.train is not set: there is nothing to train on"):
        module.train_dataloader()
    for buffer in (0, 10**12):
        with pytest.raises(UserError, match=rf"data.shuffle_buffer is {buffer}; 1 record is the least, and 10,000,000"):
            permutations(data, tiny_model, shuffle_buffer=buffer)


def test_broken_shards_are_named_with_the_place(tiny_model: Path, tmp_path: Path) -> None:
    good = json.dumps({"qid": "q", "query": "x", "passages": [{"docid": "a", "text": "b"}]})
    (tmp_path / "a.jsonl").write_text(f'{good}\n{{"qid": 1}}\n')
    with pytest.raises(UserError, match=r'a.jsonl: record 2: "qid" must be a string, not 1'):
        list(ShardsSource(tmp_path / "a.jsonl"))
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"must hold either .parquet files or .jsonl files"):
        list(ShardsSource(tmp_path))
    with pytest.raises(UserError, match=r"b.parquet: cannot be read"):
        list(ShardsSource(tmp_path / "b.parquet"))
    with pytest.raises(UserError, match="nowhere does not exist, and is no Hub id"):
        ShardsSource("nowhere")
    with pytest.raises(UserError, match="~no-such-user/x"):
        ShardsSource("~no-such-user/x")


def test_a_shard_that_disappears_is_named(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    prepare(str(data / "train.jsonl"), output=tmp_path / "shards", shard_records=2)
    module = permutations(data, tiny_model, ShardsSource(tmp_path / "shards"), shuffle_buffer=1)
    batches = iter(module.train_dataloader())
    next(batches)
    for file in (tmp_path / "shards").glob("*.parquet"):
        file.unlink()
    with pytest.raises(UserError, match=r"\d.parquet: cannot be read after 0 records: "):
        list(batches)
