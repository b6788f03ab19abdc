"""Prepared shards: whatever a folder holds, reading and streaming it give the same records, or one named error."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from data_modules import PermutationDataModule, PreferenceDataModule
from data_modules.manifest import NAME, Manifest, Shard, Skipped, fingerprints
from data_modules.records import RankingRecord
from data_modules.rows import from_row, schema, to_row
from data_modules.sources import PreferencePair, ShardsSource
from data_modules.sources.messages import Conversation
from data_modules.sources.shards import hash_of
from data_modules.stream import Part, Passes, Stream
from lit_rerank.encoding import PromptSettings
from tests.fuzz.inputs import dumped, fuzz, mangled, mutated, survives
from tests.tiny import record

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
GOOD: dict[str, list[Any]] = {
    "rankings": [record("q1", 3), record("q2", 2)],
    "pairs": [PreferencePair([USER], "Because.", "No."), PreferencePair("Why?", "Because.", "No.")],
    "conversations": [Conversation((USER, ASSISTANT)), Conversation(({"role": "text", "content": "Fleas jump."},))],
}
BATCHES = 100  # that are asked for, where a manifest promises more
PASSES = 12  # records that are asked for without a manifest


@pytest.fixture(autouse=True, scope="module")
def uncounted() -> Iterator[None]:
    """`datasets` does not tell its makers of every reading, which takes a second where there is no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield


def parquet(rows: Any, columns: "pa.Schema | None", compression: str = "zstd") -> bytes:
    """A file of these rows; None as columns: those that the rows seem to have."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, columns), buffer, compression=compression)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def put(folder: Path, *files: bytes, records: Sequence[int], kind: str = "rankings") -> Manifest:
    """Write shards, and a manifest that fits them."""
    shards = []
    for number, (content, count) in enumerate(zip(files, records, strict=True)):
        file = folder / f"{number}.parquet"
        file.write_bytes(content)
        shards.append(Shard(file.name, count, len(content), hash_of(file)))
    manifest = Manifest(type(GOOD[kind][0]).__name__, sum(records), tuple(shards))
    (folder / NAME).write_text(manifest.dump())
    return manifest


def read(what: str, folder: Path, model: Path) -> None:
    """Whole, streamed, and as a training does."""
    whole = survives(what, lambda: list(ShardsSource(folder)))
    rows = survives(what, lambda: streamed(folder))
    if survives(what, lambda: ShardsSource(folder).check_content() or True):
        assert bool(whole) == bool(rows)
        if whole:
            assert {*map(repr, whole)} == {*map(repr, map(from_row, rows))}
            assert not (folder / NAME).exists() or len(whole) == len(rows)
    survives(what, lambda: loaded(PreferenceDataModule if "pairs" in what else PermutationDataModule, folder, model))


def streamed(folder: Path) -> list[Any]:
    """The rows of an epoch, as two processes get them."""
    rows = []
    for rank in range(2):
        source = ShardsSource(folder)
        source.check_content()
        quota = PASSES if source.manifest is None else source.manifest.records
        passes = Passes(source, lambda row, done, index: row, 1, 0, seed=3)
        part = Part(passes, quota, apart=source.manifest is None)
        batches = Stream([part], 2, rank, batch_size=2, buffer=3, seed=3)
        rows += [row for number in range(min(BATCHES, len(batches))) for row in batches[0, number]]
    return rows


def loaded(module: type[Any], folder: Path, model: Path) -> None:
    data = module(train=ShardsSource(folder), tokenizer=str(model), streaming=True)
    data.prepare_data()
    data.setup("fit")
    for _, _batch in zip(range(BATCHES), data.train_dataloader(), strict=False):
        pass


@pytest.mark.parametrize("kind", GOOD)
@fuzz(60)
@given(data=st.data())
def test_rows(kind: str, data: st.DataObject, tmp_path: Path, tiny_model: Path) -> None:
    rows = data.draw(mutated(list(map(to_row, GOOD[kind]))))
    columns = data.draw(st.sampled_from([None, schema(type(GOOD[kind][0]))]))
    try:
        put(tmp_path, parquet(rows, columns), records=[len(rows)], kind=kind)
    except Exception:  # pyarrow's are of many types
        reject()
    read(f"rows of shards: {kind}", tmp_path, tiny_model)


@st.composite
def overwritten(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with others in place of a few of them, so that what stands elsewhere is found where it was."""
    others = draw(st.binary(min_size=1, max_size=4))
    start = draw(st.integers(0, len(good) - len(others)))
    return good[:start] + others + good[start + len(others) :]


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("kind", GOOD)
@fuzz(60)
@given(data=st.data())
def test_mangled_files(kind: str, compression: str, data: st.DataObject, tmp_path: Path, tiny_model: Path) -> None:
    good = parquet(list(map(to_row, GOOD[kind])), schema(type(GOOD[kind][0])), compression)
    put(tmp_path, data.draw(st.one_of(mangled(good), overwritten(good))), records=[2], kind=kind)
    if data.draw(st.booleans()):
        (tmp_path / NAME).unlink()
    read(f"mangled shards: {kind}", tmp_path, tiny_model)


@st.composite
def recounted(draw: st.DrawFn, good: Any) -> Any:
    """A manifest whose shards have other numbers of records."""
    counts = st.one_of(st.integers(0, 3), st.sampled_from([10**9, 2**62, 2**63 - 1]))
    shards = [shard | {"records": draw(counts)} for shard in good["shards"]]
    return good | {"shards": shards, "records": sum(shard["records"] for shard in shards)}


@fuzz(120)
@given(data=st.data())
def test_manifests(data: st.DataObject, tmp_path: Path, tiny_model: Path) -> None:
    rows, columns = list(map(to_row, GOOD["rankings"])), schema(RankingRecord)
    skipped, meant_for = (Skipped("no text", 1, "a.jsonl:1: no text"),), fingerprints(None, PromptSettings())
    kept = put(tmp_path, parquet(rows, columns), parquet(rows[:1], columns), records=[2, 1])
    good = replace(kept, skipped=skipped, encoded_as=meant_for).dump().encode()
    changed = st.one_of(mutated(json.loads(good)), recounted(json.loads(good)))
    (tmp_path / NAME).write_bytes(data.draw(st.one_of(mangled(good), changed.map(dumped))))
    read("manifests", tmp_path, tiny_model)
