"""From sources to batches: what is drawn, when, and on which process."""

import dataclasses
import json
import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules import PermutationDataModule, PreferenceDataModule
from data_modules.base import RankingDataModule
from data_modules.records import Window
from data_modules.sources import CandidatesSource, JsonlSource, MessagesSource, PairsSource, SearchedSource
from data_modules.sources.own import write_jsonl
from data_modules.windows import Augmentation, BucketSampler, Examples, deal, generator
from lit_rerank.encoding import EncodedWindow
from lit_rerank.errors import UserError
from lit_rerank.preferences import PreferenceExample
from tests.encoders import parts
from tests.tiny import record
from tests.training import write_candidates

PAIRS = """\
{"prompt": "Which is larger?", "chosen": "The sun.", "rejected": "The moon."}
{"prompt": [{"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "Why not?"}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six records of 9 passages with a teacher's order."""
    path = tmp_path_factory.mktemp("data") / "records.jsonl"
    draw = random.Random(1)
    write_jsonl([record(f"q{i}", 9, tuple(draw.sample(range(1, 10), 9))) for i in range(6)], path)
    return path


def permutations(source: Path, model: Path, stage: str = "fit", **options: Any) -> PermutationDataModule:
    options.setdefault("augmentation", Augmentation(2, 6))
    module = PermutationDataModule(train=JsonlSource(source), tokenizer=str(model), batch_size=2, **options)
    module.setup(stage)
    return module


def batches(module: RankingDataModule[Any], epoch: int = 0) -> list[list[Any]]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def flat(batches: Iterable[Iterable[Any]]) -> list[Any]:
    return [example for batch in batches for example in batch]


@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_vary_within_bounds_and_keep_the_teachers_order(shuffle: bool) -> None:
    original = record("q", 9, (3, 1, 4, 9, 5, 2, 6, 8, 7))
    ranked = [original.passages[i - 1] for i in original.permutation or ()]
    augmentation = Augmentation(2, 6, shuffle)
    windows = [augmentation.draw(original, generator(0, 0, index)) for index in range(200)]
    assert {len(window) for window in windows} == {2, 3, 4, 5, 6}
    for window in windows:
        assert window.permutation is not None
        best_first = [window.passages[i - 1] for i in window.permutation]
        assert best_first == [passage for passage in ranked if passage in window.passages]
    in_order = [list(w.passages) == [p for p in original.passages if p in w.passages] for w in windows]
    assert all(in_order) != shuffle
    assert len({frozenset(p.docid for p in window.passages) for window in windows}) > 100


def test_a_record_smaller_than_the_windows_is_taken_whole() -> None:
    window = Augmentation(5, 8, shuffle=False).draw(record("q", 3), generator(0, 0, 0))
    assert window == Window.of(record("q", 3), range(3))


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    def draw(seed: int, epoch: int, index: int) -> Window:
        return Augmentation().draw(record("q", 20), generator(seed, epoch, index))

    random.seed(1)
    first = draw(1, 2, 3)
    random.seed(2)
    assert draw(1, 2, 3) == first
    assert all(draw(*other) != first for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 23, 0), (12, 3, 0)))


@pytest.mark.parametrize("sizes", [(1, 5), (6, 5), (0, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="a window holds 2 passages or more"):
        Augmentation(*sizes)


def test_worker_processes_draw_the_same_windows(source: Path, tiny_model: Path) -> None:
    for epoch in (0, 1):
        alone = batches(permutations(source, tiny_model), epoch)
        assert batches(permutations(source, tiny_model, num_workers=2), epoch) == alone
        assert [len(batch) for batch in alone] == [2, 2, 2]


def test_what_spawned_workers_get_leaves_the_sources_behind(tiny_model: Path) -> None:
    """A BM25 index, for one, cannot be pickled."""
    searched = SearchedSource("pydocs/val", depth=3, teacher="first_stage")
    module = PermutationDataModule(train=searched, candidates=searched, tokenizer=str(tiny_model), batch_size=2)
    module.setup("fit")
    examples = module.train_dataloader().dataset
    assert pickle.loads(pickle.dumps(examples))[0, 0] == examples[0, 0]


def test_epochs_differ_in_order_and_windows_and_seeds_too(source: Path, tiny_model: Path) -> None:
    module = permutations(source, tiny_model)
    first, second = flat(batches(module, 0)), flat(batches(module, 1))
    assert flat(batches(module, 0)) == first
    assert sorted(e.window.qid for e in first) == sorted(e.window.qid for e in second) == [f"q{i}" for i in range(6)]
    assert [e.window.qid for e in first] != [e.window.qid for e in second]
    assert {e.window for e in first}.isdisjoint(e.window for e in second)
    assert {e.window for e in first}.isdisjoint(
        e.window for e in flat(batches(permutations(source, tiny_model, seed=1)))
    )


def test_a_record_gives_several_different_windows(source: Path, tiny_model: Path) -> None:
    module = permutations(source, tiny_model, augmentation=Augmentation(2, 6, windows_per_record=3))
    windows = [example.window for example in flat(batches(module))]
    assert sorted(window.qid for window in windows) == sorted([f"q{i}" for i in range(6)] * 3)
    assert len(set(windows)) == 18


def test_validation_sees_the_same_windows_in_every_epoch(source: Path, tiny_model: Path) -> None:
    module = permutations(source, tiny_model, val=JsonlSource(source), val_batch_size=4)
    (loader,) = module.val_dataloader()
    first = list(loader)
    loader.sampler.set_epoch(1)  # as Lightning does
    assert list(loader) == first
    assert [example.window.qid for example in flat(first)] == [f"q{i}" for i in range(6)]


def test_only_the_first_choices_are_supervised(source: Path, tiny_model: Path) -> None:
    examples = flat(batches(permutations(source, tiny_model, choices=3)))
    assert [e.supervised for e in examples] == [min(3, len(e.window)) for e in examples]
    assert all(e.supervised == len(e.window) for e in flat(batches(permutations(source, tiny_model))))
    preferences = PreferenceDataModule(
        negatives="all",
        train=JsonlSource(source),
        tokenizer=str(tiny_model),
        choices=2,
        augmentation=Augmentation(5, 5),
    )
    preferences.setup("fit")
    assert all([p.step for p in e.preferences] == [1, 2] for e in flat(batches(preferences)))
    with pytest.raises(UserError, match=r"data\.choices is 0"):
        PermutationDataModule(choices=0)


class Lengths:
    """Examples of which only the lengths matter: most are short, a few long."""

    def __init__(self, count: int) -> None:
        self.lengths = [random.Random(i).choice([10, 12, 15, 20, 100]) for i in range(count)]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key

    def length(self, key: tuple[int, int]) -> int:
        return self.lengths[key[1]]


def steps(
    examples: Examples, processes: int, accumulate: int, batch_size: int, epoch: int = 3
) -> list[list[list[int]]]:
    """The rows of each optimizer step, on all processes."""
    found: list[list[list[int]]] = []
    for rank in range(processes):
        sampler = BucketSampler(examples, processes, rank, 5, batch_size, accumulate)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler)
        assert {epoch for epoch, _ in keys} == {epoch}
        indices = [index for _, index in keys]
        rows = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for step, start in enumerate(range(0, len(rows), accumulate)):
            found += [[]] if rank == 0 else []
            found[step] += rows[start : start + accumulate]
    return found


@pytest.mark.parametrize("count", [48, 47, 9, 1])
@pytest.mark.parametrize(
    ("processes", "accumulate", "batch_size"), [(2, 1, 4), (1, 4, 2), (2, 2, 2), (4, 2, 1), (8, 1, 1), (1, 8, 1)]
)
def test_a_steps_examples_do_not_depend_on_how_it_is_read(
    count: int, processes: int, accumulate: int, batch_size: int
) -> None:
    read = [flat(rows) for rows in steps(Lengths(count), processes, accumulate, batch_size)]
    expected = [flat(rows) for rows in steps(Lengths(count), 1, 1, 8)]
    assert sorted(flat(expected)) == list(range(count))
    assert len(read) == len(expected)
    assert all(set(found) == set(one) for found, one in zip(read[:-1], expected[:-1], strict=True))
    assert set(read[-1]) >= set(expected[-1])
    assert len(flat(read)) == count + -count % processes  # as few are repeated as makes the shares even


def test_each_epoch_has_steps_of_its_own() -> None:
    assert steps(Lengths(48), 1, 1, 8, epoch=3) != steps(Lengths(48), 1, 1, 8, epoch=4)


def test_the_rows_of_a_step_are_of_like_length() -> None:
    lengths = Lengths(256).lengths

    def spread(rows: list[list[int]]) -> int:
        totals = [sum(lengths[i] for i in row) for row in rows]
        return max(totals) - min(totals)

    for rows in steps(Lengths(256), 2, 4, 8):
        in_order = sorted(flat(rows))
        assert spread(rows) < 100  # less than one long example
        assert spread(rows) < spread([in_order[start : start + 8] for start in range(0, 64, 8)])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_dealing_gives_every_row_its_size_and_every_example_one_place(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=9))
    count = sum(sizes)
    lengths = data.draw(st.lists(st.integers(0, 4000), min_size=count, max_size=count))
    rows = deal(lengths, sizes)
    assert [len(row) for row in rows] == sizes
    assert sorted(i for row in rows for i in row) == list(range(count))
    assert all(row == sorted(row) for row in rows)
    assert deal(lengths, sizes) == rows


def test_the_longest_examples_go_to_different_rows() -> None:
    assert deal([9, 1, 1, 9, 1, 1], [3, 3]) == [[0, 1, 4], [2, 3, 5]]
    assert deal([1, 2, 3], [2, 1]) == [[0, 2], [1]]  # only the first has room left for the last
    assert deal([7], [1]) == [[0]]
    assert deal([], [0, 0]) == [[], []]


def replayed(tmp_path: Path, talks: int) -> MessagesSource:
    lines = [
        '{"messages": [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "%s"}]}'
        % ("much " * 7 * i)
        for i in range(1, talks + 1)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return MessagesSource(tmp_path / "talks.jsonl")


def test_windows_and_conversations_are_dealt_by_what_they_hold(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    module = permutations(source, tiny_model, replay=replayed(tmp_path, 4), replay_share=0.4)
    examples: Any = module.train_dataloader().dataset
    one, two, four = (
        [sorted(flat(rows)) for rows in steps(examples, *split)] for split in ((1, 1, 4), (2, 1, 2), (2, 2, 1))
    )
    assert one == two == four
    assert sorted(flat(one)) == list(range(10))
    windows, conversations = {}, []
    for index in range(10):
        example, length = examples[3, index], examples.length((3, index))
        if isinstance(example, EncodedWindow):
            assert windows.setdefault(len(example.window), length) == length
        else:
            conversations.append((len(example.ids), length))
    assert len(windows) > 1
    assert sorted(windows.values()) == [windows[n] for n in sorted(windows)]  # more passages are longer
    assert len({length for _, length in conversations}) == 4
    assert sorted(conversations) == sorted(conversations, key=lambda pair: pair[1])


def test_preferences_and_ready_made_pairs_have_lengths(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Why?" * i, "chosen": "Because.", "rejected": "Why not?"} for i in range(1, 7)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for train in (JsonlSource(source), PairsSource(tmp_path / "pairs.jsonl")):
        module = PreferenceDataModule(
            negatives="all", train=train, tokenizer=str(tiny_model), augmentation=Augmentation(2, 6)
        )
        module.setup("fit")
        examples: Any = module.train_dataloader().dataset
        one, two = ([sorted(flat(rows)) for rows in steps(examples, *split)] for split in ((1, 1, 4), (2, 2, 1)))
        assert one == two
        assert sorted(flat(one)) == list(range(6))
        by_length = sorted(range(6), key=lambda index: examples.length((3, index)))
        tokens = [len(examples[3, index].ids) for index in by_length]
        assert tokens == sorted(tokens)
        assert tokens[0] < tokens[-1]


def test_records_come_back_from_the_table_as_they_were(tiny_model: Path, tmp_path: Path) -> None:
    records = [record("q1", 3), dataclasses.replace(record("q2", 2), qrels=None), record("q3", 4)]
    write_candidates(records, tmp_path / "c.jsonl", tmp_path / "q.txt")
    module = PermutationDataModule(
        candidates=CandidatesSource(tmp_path / "c.jsonl", tmp_path / "q.txt"), tokenizer=str(tiny_model)
    )
    for stage, loader in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        module.setup(stage)
        loaders = getattr(module, f"{loader}_dataloader")()
        (batch,) = loaders[0] if isinstance(loaders, list) else loaders
        assert batch == [dataclasses.replace(r, permutation=None) for r in records]


def test_a_missing_source_is_named(source: Path, tiny_model: Path) -> None:
    module = PermutationDataModule(val=JsonlSource(source), tokenizer=str(tiny_model))
    module.setup("fit")
    with pytest.raises(UserError, match=r"data.init_args.train is not set: there is nothing to train on"):
        module.train_dataloader()
    for loader in (module.test_dataloader, module.predict_dataloader):
        with pytest.raises(UserError, match=r"data.init_args.candidates is not set: there is nothing to rerank"):
            loader()


def test_malformed_lines_raise_with_their_place_or_are_skipped_and_counted(
    source: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, *_ = source.read_text().splitlines()
    path = tmp_path / "broken.jsonl"
    path.write_text(f'{good}\n{{"qid": 1}}\nno json\n')
    with pytest.raises(UserError, match=rf'{path}:2: "qid" must be a string'):
        permutations(path, tiny_model)
    module = PermutationDataModule(train=JsonlSource(path, on_error="skip"), tokenizer=str(tiny_model))
    with caplog.at_level("INFO"):
        module.setup("fit")
    assert len(flat(batches(module))) == 1
    assert f'train: 2 lines skipped, the first: {path}:2: "qid" must be a string' in caplog.text
    path.write_text("no json\n")
    with pytest.raises(UserError, match=r"data.init_args.train: the source holds no record"):
        PermutationDataModule(train=JsonlSource(path, on_error="skip"), tokenizer=str(tiny_model)).setup("fit")


def test_pairs_where_rankings_are_needed_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    module = PermutationDataModule(train=PairsSource(tmp_path / "pairs.jsonl"), tokenizer=str(tiny_model))
    with pytest.raises(UserError, match=r"init_args\.train: ready-made pairs are for PreferenceDataModule's train and"):
        module.setup("fit")


@pytest.mark.parametrize("kind", [PermutationDataModule, PreferenceDataModule])
def test_conversations_where_rankings_are_needed_are_refused(kind: Any, tiny_model: Path, tmp_path: Path) -> None:
    module = kind(train=replayed(tmp_path, 2), tokenizer=str(tiny_model))
    with pytest.raises(UserError, match=r"init_args\.train: conversations are for replay; here rankings"):
        module.setup("fit")


def test_a_pair_whose_prompt_merges_with_an_answer_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """`Step` is one token, and no context is left."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "St", "chosen": "ep", "rejected": "art"}\n')
    source = PairsSource(tmp_path / "pairs.jsonl")
    module = PreferenceDataModule(negatives="sequence", train=source, tokenizer=str(tiny_model))
    module.setup("fit")
    with pytest.raises(UserError, match="pair 0: its prompt holds no token that stands before both answers"):
        batches(module)


def test_a_record_without_a_teacher_is_named(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl([dataclasses.replace(record("q7", 3), permutation=None)], tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="query 'q7' has no teacher permutation to learn from"):
        batches(permutations(tmp_path / "r.jsonl", tiny_model))


@pytest.mark.parametrize("negatives", ["on_policy", "hardest", "sampled:2", "all", "sequence"])
def test_every_kind_of_negatives_gives_batches(source: Path, tiny_model: Path, negatives: str) -> None:
    def load() -> list[PreferenceExample]:
        module = PreferenceDataModule(
            negatives=negatives, train=JsonlSource(source), tokenizer=str(tiny_model), augmentation=Augmentation(4, 6)
        )
        module.setup("fit")
        return flat(batches(module))

    examples = load()
    assert load() == examples
    assert len(examples) == 6
    for example in examples:
        assert example.pick == (negatives if negatives in ("on_policy", "hardest") else None)
        assert len(example.preferences) == 1 if negatives == "sequence" else 3 <= len(example.preferences) <= 5
        if negatives == "sampled:2":
            assert [len(p.rejected) for p in example.preferences][-3:] == [2, 2, 1]


def test_preferences_are_those_of_the_windows_that_sft_draws(source: Path, tiny_model: Path) -> None:
    windows: list[EncodedWindow] = flat(batches(permutations(source, tiny_model)))
    preferences = PreferenceDataModule(
        negatives="all", train=JsonlSource(source), tokenizer=str(tiny_model), augmentation=Augmentation(2, 6)
    )
    preferences.setup("fit")
    for encoded, example in zip(windows, flat(batches(preferences)), strict=True):
        found = [parts(example, p)[:2] for p in example.preferences]
        assert [state + chosen for state, chosen in found] == [encoded.ids[: c.end] for c in encoded.choices[:-1]]


def test_ready_made_pairs_are_taken_as_they_stand(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    module = PreferenceDataModule(train=PairsSource(tmp_path / "pairs.jsonl"), tokenizer=str(tiny_model))
    module.setup("fit")
    texts = set()
    for example in flat(batches(module)):
        (preference,) = example.preferences
        assert example.pick is None
        state, chosen, (rejected,) = parts(example, preference)
        texts.add(tuple(module.encoder.chat.tokenizer.decode(ids) for ids in (state, chosen, rejected)))
    assert texts == {
        ("Which is larger?", "The sun.<|im_end|>", "The moon.<|im_end|>"),
        ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "Because.<|im_end|>", "Why not?<|im_end|>"),
    }
