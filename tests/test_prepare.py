"""Any source becomes shards with a manifest, and shards that are not what their manifest says are refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_modules.manifest import NAME, Manifest
from data_modules.permutation import PermutationDataModule
from data_modules.prepare import main, prepare
from data_modules.records import RankingRecord
from data_modules.rows import schema
from data_modules.sources import (
    ConversationsSource,
    JsonlSource,
    MessagesSource,
    MixedSource,
    PairsSource,
    PreferencePair,
    RankLLMSource,
    ShardsSource,
)
from data_modules.sources.detect import open_source
from data_modules.sources.own import write_jsonl
from data_modules.sources.shards import CHUNK
from lit_rerank.cli import in_one_line
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from tests.tiny import record

PAIR = '{"prompt": [{"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "Why not?"}\n'
TALK = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}\n'
PLAIN = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n'


@pytest.fixture
def records() -> list[RankingRecord]:
    """With and without teacher, choices and judgements."""
    plain = RankingRecord("q0", "fleas", record("q0", 3).passages)
    chosen = RankingRecord("q1", "fleas", record("q1", 3).passages, (2, 1, 3), choices=1)
    return [plain, chosen, *(record(f"q{i}", 2 + i % 4) for i in range(2, 10))]


@pytest.fixture
def source(records: list[RankingRecord], tmp_path: Path) -> Path:
    write_jsonl(records, tmp_path / "r.jsonl")
    return tmp_path / "r.jsonl"


def command(*words: str) -> None:
    """`python -m data_modules.prepare` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prepare", *words])
        in_one_line(main)


def test_records_come_back_from_shards_as_they_were(records: list[RankingRecord], source: Path, tmp_path: Path) -> None:
    manifest = prepare(str(source), output=tmp_path / "shards", shard_records=4)
    assert [(shard.name, shard.records) for shard in manifest.shards] == [
        ("00000.parquet", 4),
        ("00001.parquet", 4),
        ("00002.parquet", 2),
    ]
    shards = ShardsSource(tmp_path / "shards")
    assert list(shards) == records
    assert shards.manifest == manifest
    assert {file.name for file in (tmp_path / "shards").iterdir()} == {*(s.name for s in manifest.shards), NAME}
    (tmp_path / "shards" / NAME).unlink()
    assert list(ShardsSource(tmp_path / "shards")) == list(ShardsSource(source)) == records


@pytest.mark.parametrize(("line", "layout"), [(PAIR + PLAIN, PairsSource), (TALK, MessagesSource)])
def test_other_kinds_come_back_too(line: str, layout: Callable[[Path], PairsSource], tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    prepare(str(tmp_path / "r.jsonl"), output=tmp_path / "shards")
    assert list(ShardsSource(tmp_path / "shards")) == list(layout(tmp_path / "r.jsonl"))


def test_a_files_layout_is_told_by_its_first_row(source: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(source), JsonlSource)
    (tmp_path / "c.jsonl").write_text('\n{"id": "a", "conversations": []}\n')
    assert isinstance(open_source(tmp_path / "c.jsonl"), ConversationsSource)
    for name, (content, layout) in {
        "conversations": ([{"id": "a", "conversations": []}], ConversationsSource),
        "messages": ([{"messages": [{"role": "user", "content": "a"}]}], MessagesSource),
        "texts": ([{"text": "Fleas jump.", "url": "u"}], MessagesSource),
        "empty": ([], RankLLMSource),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert type(open_source(tmp_path / f"{name}.json")) is layout


def test_an_array_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(f"[{TALK}]", encoding="utf-8-sig")
    (tmp_path / "r.jsonl").write_text(TALK)
    assert list(open_source(tmp_path / "r.json")) == list(open_source(tmp_path / "r.jsonl"))


def test_sources_of_all_kinds_are_named_on_the_command_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = f"{{class_path: JsonlSource, init_args: {{path: {source}}}}}"
    (tmp_path / "s.yaml").write_text(written)
    command(str(source), written, str(tmp_path / "s.yaml"), f"--output={tmp_path / 'shards'}", "--shard_records=7")
    assert capsys.readouterr().out == f"{tmp_path / 'shards'}: 30 records in 5 shards\n"
    assert list(ShardsSource(tmp_path / "shards")) == 3 * list(JsonlSource(source))


def test_skipped_lines_are_counted_by_reason(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = '{"qid": 1}\n{"qid": [2]}\nno json\n{"qid": 3}\n'
    source.write_text(source.read_text() + broken)
    with pytest.raises(SystemExit, match=rf'^error: {source}:11: "qid" must be a string, not 1$'):
        command(str(source), f"--output={tmp_path / 'shards'}")
    assert [file.name for file in tmp_path.iterdir()] == [source.name]  # no half of a folder is left
    command(str(source), f"--output={tmp_path / 'shards'}", "--on_error=skip")
    manifest = ShardsSource(tmp_path / "shards").manifest
    assert manifest is not None
    assert manifest.records == 10
    assert [(left.reason, left.lines) for left in manifest.skipped] == [
        ('"qid" must be a string', 3),
        ("not valid JSON: Expecting value (column ...)", 1),
    ]
    assert manifest.skipped[0].first == f'{source}:11: "qid" must be a string, not 1'
    assert 'skipped 3 lines: "qid" must be a string (the first: ' in capsys.readouterr().out


@pytest.mark.parametrize("broken", ['{"qid": "q0", "que', "[1, 2]"])
def test_a_layout_is_told_by_the_first_line_that_is_whole(source: Path, tmp_path: Path, broken: str) -> None:
    source.write_text(f"{broken}\n{source.read_text()}")
    with pytest.raises(SystemExit, match=rf"^error: {source}:1: [^\n]*$"):
        command(str(source), f"--output={tmp_path / 'shards'}")
    command(str(source), f"--output={tmp_path / 'shards'}", "--on_error=skip")
    manifest = ShardsSource(tmp_path / "shards").manifest
    assert manifest is not None
    assert manifest.records == 10
    assert [left.lines for left in manifest.skipped] == [1]
    source.write_text(f"{broken}\n{broken}\n")
    with pytest.raises(SystemExit, match=rf"^error: {source}:1: [^\n]*$"):
        command(str(source), f"--output={tmp_path / 'more'}", "--on_error=skip")


def test_a_command_that_is_ended_leaves_no_half_of_a_folder(tmp_path: Path) -> None:
    words = f"{{class_path: PointingSource, init_args: {{collection: pydocs, windows: {10**9}}}}}"
    whole = [sys.executable, "-m", "data_modules.prepare", words, "--output=shards", "--shard_records=1"]
    home = Path(__file__).resolve().parents[1]
    with subprocess.Popen(whole, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(home)}) as process:
        while process.poll() is None and not list(tmp_path.glob("shards.*.tmp/*")):
            time.sleep(0.1)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is neither a .jsonl or .json file nor a source such as '{class_path: JsonlSource"),
        (["{class_path: ["], "not valid YAML"),
        (["~nosuchuser/train.jsonl"], "~nosuchuser/train.jsonl: "),
        (["{class_path: JsonlSource, init_args: {path: nowhere}}"], "nowhere does not exist"),
        (["{class_path: NoSource}"], "NoSource"),
        (["{source}", "--shard_records=0"], "shard_records is 0; it must be at least 1"),
        (
            ["{source}", f"--shard_records={10**20}"],
            f"shard_records is {10**20}; it must be at least 1 and at most 10,0",
        ),
        (["{source}", "--output={here}"], "is there already, and not empty"),
        (["{source}", "--output=~no-such-user/x"], "~no-such-user/x"),
        (["{source}", "{here}/pairs.jsonl"], "one kind; not .'PreferencePair', 'RankingRecord'."),
        (["{here}/empty.jsonl"], "empty.jsonl: there is no record"),
        (["{here}/latin.yaml"], "latin.yaml: not valid YAML"),
        (["{here}/deep.yaml"], "deep.yaml: not usable YAML: nested too deeply"),
        (["{class_path: JsonlSource, init_args: {path: " + "x" * 300 + "}}"], "File name too long"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], message: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(PAIR)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.yaml").write_bytes("class_path: é".encode("latin-1"))
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000)
    filled = [word.replace("{source}", str(source)).replace("{here}", str(tmp_path)) for word in words]
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{message}[^\n]*$"):
        command(f"--output={tmp_path / 'shards'}", *filled)
    assert not (tmp_path / "shards").exists()


def test_the_current_folder_is_not_replaced(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"^error: {tmp_path} is there already, and not empty: name another folder"):
        command(str(source), "--output=.")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(SystemExit, match=rf"^error: {tmp_path}/empty is the current folder, [^\n]*in it$"):
        command(str(source), "--output=.")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", source.name]
    command(str(source), "--output=shards")
    assert (tmp_path / "empty" / "shards" / NAME).is_file()


def test_an_empty_folder_is_filled_where_it_stands(records: list[RankingRecord], source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    prepare(str(source), output=tmp_path / "link")
    assert list(ShardsSource(tmp_path / "empty")) == list(ShardsSource(tmp_path / "link")) == records


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    prepare(str(source), output=tmp_path / "shards", shard_records=4)
    return tmp_path / "shards"


def rewritten(folder: Path, /, **changes: object) -> None:
    manifest = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(manifest | changes))


def first_shard(folder: Path, /, **changes: object) -> None:
    """Let the manifest say other things of the first shard."""
    first, *others = json.loads((folder / NAME).read_text())["shards"]
    shards = [first | changes, *others]
    rewritten(folder, shards=shards, records=sum(shard["records"] for shard in shards))


def other_byte(shards: Path) -> None:
    content = bytearray((shards / "00001.parquet").read_bytes())
    content[100] ^= 1
    (shards / "00001.parquet").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shards: (shards / "00001.parquet").unlink(), r"00001.parquet is missing; manifest.json beside it"),
        (lambda shards: (shards / "00001.parquet").write_bytes(b"PAR1"), r"has 4 bytes; manifest.json beside it says"),
        (other_byte, r"00001.parquet is not the file that manifest.json beside it describes"),
        (lambda shards: first_shard(shards, records=3), r"0.parquet holds 4 records; manifest.json beside it says 3"),
        (lambda shards: rewritten(shards, shards=[], records=0), r'manifest.json: "shards" is empty'),
        (lambda shards: first_shard(shards, records=5), r"0.parquet holds 4 records; manifest.json beside it says 5"),
        (lambda shards: first_shard(shards, records=0), r'"shards", item 1: "records" is 0; a shard holds at least 1'),
        (lambda shards: first_shard(shards, name="a\nb"), r'"name" must be that of a file in this folder, not .a.nb'),
        (lambda shards: first_shard(shards, name="x" * 300), r"cannot be read: [^\n]*File name too long"),
        (lambda shards: rewritten(shards, records=11), r'manifest.json: "records" is 11, which is not what its shards'),
        (lambda shards: rewritten(shards, shards=[{"name": "../x"}]), r'"shards", item 1: "name" must be that of a f'),
        (lambda shards: first_shard(shards, name="00001.parquet"), r'"shards" names 00001.parquet 2 times'),
        (lambda shards: rewritten(shards, kind="Conversation"), r"its columns qid, [^\n]* are not those of the Conver"),
        (
            lambda shards: rewritten(shards, kind=["x"]),
            r'manifest.json: "kind" must be RankingRecord, PreferencePair or',
        ),
        (lambda shards: (shards / NAME).write_text("{"), r"manifest.json: not valid JSON"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_shards_that_are_not_what_the_manifest_says_are_refused(
    shards: Path, tiny_model: Path, change: Callable[[Path], object], message: str, streaming: bool
) -> None:
    change(shards)
    module = PermutationDataModule(train=ShardsSource(shards), tokenizer=str(tiny_model), streaming=streaming)
    with pytest.raises(UserError, match=message):
        load(module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": None}, '"qid" must be a string, not None'),
        ({"query": None}, '"query" must be a string, not None'),
        ({"passages": None}, '"passages" must be a list of objects, not None'),
        ({"passages": [None]}, '"passages", item 1: must be a JSON object, not None'),
        ({"passages": [{"docid": "d", "text": None, "score": None}]}, '"passages", item 1: "text" must be a string'),
        (
            {"passages": [{"docid": "d", "text": "t", "score": float("nan")}]},
            '"passages", item 1: "score" must be a finite number, not nan',
        ),
        ({"permutation": [1, None]}, '"permutation" must be a list of whole numbers'),
        ({"qrels": [{"docid": "d", "grade": None}]}, '"qrels", item 1: "grade" must be a whole number'),
        ({"qrels": [{"docid": "d", "grade": 0}, {"docid": "d", "grade": 1}]}, "\"qrels\" judges docid 'd' 2 times"),
    ],
)
def test_a_row_of_parquet_that_is_no_record_is_named(shards: Path, change: dict[str, object], message: str) -> None:
    (shards / NAME).unlink()
    file = shards / "00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[2] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(RankingRecord)), file)
    with pytest.raises(UserError, match=rf"00001\.parquet: record 3: {re.escape(message)}"):
        list(ShardsSource(shards))
    source = ShardsSource(shards)  # as streaming reads it
    (table,) = source.tables(1)
    with pytest.raises(UserError, match=r"00001\.parquet: record 3: "):
        source.decode(table, 2, 1, 2)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_shard_that_is_longer_by_what_is_read_at_a_time_is_named(
    tiny_model: Path, tmp_path: Path, streaming: bool
) -> None:
    write_jsonl([record(f"q{i}", 2) for i in range(3 * CHUNK)], tmp_path / "r.jsonl")
    prepare(str(tmp_path / "r.jsonl"), output=tmp_path / "shards")
    first_shard(tmp_path / "shards", records=CHUNK)
    module = PermutationDataModule(
        train=ShardsSource(tmp_path / "shards"), tokenizer=str(tiny_model), streaming=streaming
    )
    with pytest.raises(UserError, match=rf"holds {3 * CHUNK} records; manifest.json beside it says {CHUNK}$"):
        load(module)


def test_a_text_of_parquet_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([json.loads(PLAIN) | {"prompt": '"Why?"'}], schema=schema(PreferencePair))
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"Because.", b"Because\xff"))
    with pytest.raises(UserError, match=r"a\.parquet: record 1: cannot be read: 'utf-8' codec can't decode byte 0xff"):
        list(ShardsSource(tmp_path))


def test_a_shards_other_columns_are_named_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["a"], "two\nlines": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"its columns query, two lines are not those of prepared records: prepare it"):
        list(ShardsSource(tmp_path))


def test_what_else_is_known_of_a_passage_is_left_out(shards: Path, records: list[RankingRecord]) -> None:
    (shards / NAME).unlink()
    for file in shards.iterdir():
        rows = pq.read_table(file).to_pylist()
        for passage in (passage for row in rows for passage in row["passages"]):
            passage["url"] = "example.org"
        pq.write_table(pa.Table.from_pylist(rows), file)
    assert list(ShardsSource(shards)) == records


def test_an_empty_shard_is_passed_over(shards: Path, records: list[RankingRecord]) -> None:
    (shards / NAME).unlink()
    pq.write_table(schema(RankingRecord).empty_table(), shards / "00000a.parquet")
    assert list(ShardsSource(shards)) == records


def test_a_folder_may_be_called_as_a_file_is(source: Path, records: list[RankingRecord], tmp_path: Path) -> None:
    prepare(str(source), output=tmp_path / "train.parquet", shard_records=4)
    shards = ShardsSource(tmp_path / "train.parquet")
    assert shards.manifest is not None
    assert list(shards) == records
    (tmp_path / "train.parquet" / NAME).unlink()
    assert list(ShardsSource(tmp_path / "train.parquet")) == records
    assert list(ShardsSource(tmp_path / "train.parquet" / "00001.parquet")) == records[4:8]


def test_what_a_shard_is_is_told_by_how_its_name_ends(shards: Path, records: list[RankingRecord]) -> None:
    (shards / NAME).unlink()
    for number in range(3):
        (shards / f"0000{number}.parquet").rename(shards / f"part.{number}.parquet")  # as Dask names them
    assert list(ShardsSource(shards)) == records
    (shards / "part.0.jsonl.gz").touch()
    with pytest.raises(UserError, match=r"either .parquet files or .jsonl files, and holds 3 of the one and 1 of the"):
        list(ShardsSource(shards))


def test_what_is_neither_here_nor_on_the_hub_is_missed_here_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def system(self: ShardsSource) -> object:
        raise OSError("Cannot reach https://huggingface.co")

    monkeypatch.setattr(ShardsSource, "_system", property(system))
    message = r"^data/nothere does not exist here, and as a dataset on the Hub hf://datasets/data/nothere: cannot be"
    with pytest.raises(UserError, match=message):
        list(ShardsSource("data/nothere"))


def test_a_folders_name_is_no_pattern(source: Path, records: list[RankingRecord], tmp_path: Path) -> None:
    for name in ("run[1]", "run?", "run1"):
        prepare(str(source), output=tmp_path / name)
    for name in ("run[1]", "run?"):
        assert list(ShardsSource(tmp_path / name)) == records


def load(module: PermutationDataModule) -> None:
    """All that training does to load an epoch."""
    module.prepare_data()
    module.setup("fit")
    for _ in module.train_dataloader():
        pass


def test_another_tokenizer_or_format_is_refused(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    prompt = PromptSettings(max_passage_tokens=20)
    learnable = tmp_path / "learnable.jsonl"
    write_jsonl([record(f"q{i}", 3) for i in range(3)], learnable)
    manifest = prepare(str(learnable), output=tmp_path / "shards", tokenizer=str(tiny_model), prompt=prompt)
    assert (manifest.tokens or 0) > 100

    def loaded(prompt: PromptSettings) -> None:
        load(PermutationDataModule(train=ShardsSource(tmp_path / "shards"), tokenizer=str(tiny_model), prompt=prompt))

    loaded(prompt)
    other = PromptSettings(max_passage_tokens=21)
    with pytest.raises(UserError, match=r"manifest.json: prepared for another format \(fingerprint \w+\) than this"):
        loaded(other)
    mixed = MixedSource([MixedSource([ShardsSource(tmp_path / "shards")]), JsonlSource(learnable)])
    with pytest.raises(UserError, match=r"manifest.json: prepared for another format"):
        load(PermutationDataModule(train=mixed, tokenizer=str(tiny_model), prompt=other))
    rewritten(tmp_path / "shards", encoded_as={**manifest.encoded_as, "tokenizer": "0123"})
    with pytest.raises(UserError, match=r"prepared for another tokenizer \(fingerprint 0123\)"):
        loaded(prompt)


@pytest.mark.parametrize("streaming", [True, False])
def test_conversations_are_for_replay_alone(source: Path, tiny_model: Path, tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "talks.jsonl").write_text(3 * TALK)
    for name in ("r", "talks"):
        prepare(str(tmp_path / f"{name}.jsonl"), output=tmp_path / name)
    rankings, talks = ShardsSource(tmp_path / "r"), ShardsSource(tmp_path / "talks")
    options = {"tokenizer": str(tiny_model), "streaming": streaming}
    with pytest.raises(UserError, match=r"talks/manifest.json: conversations are for replay; here rankings are needed"):
        load(PermutationDataModule(train=talks, **options))
    with pytest.raises(
        UserError, match=r"r/manifest.json: rankings are for train, val and candidates; here conversati"
    ):
        load(PermutationDataModule(train=rankings, replay=rankings, **options))
    (tmp_path / "r" / NAME).unlink()
    rankings = ShardsSource(tmp_path / "r")
    with pytest.raises(
        UserError, match=r"init_args.replay: rankings are for train, val and candidates; here conversat"
    ):
        PermutationDataModule(train=rankings, replay=rankings, **options).setup("fit")


@pytest.mark.parametrize("prepared", [True, False])
def test_shards_of_conversations_are_replayed_as_the_file_is(tiny_model: Path, tmp_path: Path, prepared: bool) -> None:
    write_jsonl([record(f"q{i}", 3) for i in range(6)], tmp_path / "r.jsonl")
    (tmp_path / "talks.jsonl").write_text(TALK + '{"text": "Fleas jump."}\n')
    if prepared:
        prepare(str(tmp_path / "talks.jsonl"), output=tmp_path / "talks")
    shards = ShardsSource(tmp_path / ("talks" if prepared else "talks.jsonl"))

    def examples(replay: MessagesSource | ShardsSource) -> list[object]:
        train = JsonlSource(tmp_path / "r.jsonl")
        module = PermutationDataModule(train=train, replay=replay, replay_share=0.4, tokenizer=str(tiny_model))
        module.prepare_data()
        module.setup("fit")
        return [example for batch in module.train_dataloader() for example in batch]

    assert examples(shards) == examples(MessagesSource(tmp_path / "talks.jsonl"))
    if prepared:
        first_shard(tmp_path / "talks", sha256="0")
        with pytest.raises(
            UserError, match=r"talks/00000.parquet is not the file that manifest.json beside it describes"
        ):
            examples(ShardsSource(tmp_path / "talks"))


@pytest.mark.parametrize(("line", "layout"), [(PAIR, PairsSource), (TALK, MessagesSource)])
def test_prepared_shards_are_read_by_shards_source_alone(
    line: str, layout: Callable[[Path], PairsSource], tmp_path: Path
) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    prepare(str(tmp_path / "r.jsonl"), output=tmp_path / "shards")
    with pytest.raises(UserError, match=r"shards holds prepared shards: take ShardsSource, which compares them with"):
        layout(tmp_path / "shards")


def test_a_manifest_is_read_as_it_was_written(shards: Path) -> None:
    content = (shards / NAME).read_bytes()
    assert Manifest.parse(content, NAME).dump().encode() == content


def test_shards_elsewhere_are_read_by_their_url(shards: Path, records: list[RankingRecord]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{shards}/", "/prepared/", recursive=True)
    try:
        source = ShardsSource("memory://prepared")
        source.check()
        assert list(source) == records
        memory.rm("/prepared/00001.parquet")
        with pytest.raises(UserError, match=r"memory://prepared/00001.parquet is missing"):
            source.check()
    finally:
        memory.rm("/prepared", recursive=True)
