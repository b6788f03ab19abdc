"""What a run says of itself: run.json, the size of a step, a dry run, and what to change without memory."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from lit_rerank.errors import out_of_memory
from lit_rerank.overview import RunOverview
from lit_rerank.run_record import describe, git_state, versions
from tests.training import CONFIGS, bare_trainer, command, figures, train_in, write_data

STEPS = ("--trainer.max_steps=6", "--data.init_args.batch_size=2", "--trainer.accumulate_grad_batches=2")
REPLAYED = (f"--config={CONFIGS / 'data' / 'replay.yaml'}", "--seed_everything=5")
TAG = "run/text_summary"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("operations"), train=8, val=2, candidates=3)
    with (folder / "data" / "train.jsonl").open("a") as file:
        file.write('{"qid": "broken"}\n')
    return folder


def fit(folder: Path, model: Path, run: str, *more: str) -> None:
    skip = "--data.init_args.train.init_args.on_error=skip"
    train_in(folder, command("sft", "lora", "permutations", run, skip, *STEPS, *more, model=model))


@pytest.fixture(scope="module")
def run(folder: Path, tiny_model: Path) -> Path:
    fit(folder, tiny_model, "run", *REPLAYED)
    return folder / "run"


@pytest.fixture(scope="module")
def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_run_knows_what_it_was_made_of(record: dict[str, Any], tiny_model: Path) -> None:
    assert record["seed"] == record["config"]["seed_everything"] == 5
    assert record["config"]["model"]["init_args"]["backbone"]["model"] == str(tiny_model)
    assert record["config"]["trainer"]["max_steps"] == 6
    assert record["versions"] == versions()
    assert record["versions"]["torch"] == torch.__version__
    assert record["git"] == git_state()
    assert record["machine"]["processes"] == 1


def test_a_run_knows_its_data(record: dict[str, Any], folder: Path) -> None:
    data = record["data"]
    counts = {name: (source["records"], source["skipped"]) for name, source in data.items()}
    assert counts == {"train": (8, 1), "val": (2, 0), "candidates": (3, 0), "replay": (5, 0)}
    assert data["train"]["first_skipped"].startswith("data/train.jsonl:9: ")
    files = {"train": ["train.jsonl"], "candidates": ["val.candidates.jsonl", "val.qrels.txt"]}
    for name, expected in files.items():
        assert set(data[name]["files"]) == {f"data/{file}" for file in expected}
        for path, described in data[name]["files"].items():
            content = (folder / path).read_bytes()
            assert described == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert data["train"]["source"] == "JsonlSource"


STREAMED = (f"--config={CONFIGS / 'data' / 'streaming.yaml'}", "--data.init_args.num_workers=0")


def test_a_streamed_run_knows_its_data(folder: Path, tiny_model: Path) -> None:
    train_in(folder, command("sft", "lora", "permutations", "streamed", *STEPS, *STREAMED, model=tiny_model))
    train = json.loads((folder / "streamed" / "run.json").read_text())["data"]["train"]
    assert (train["source"], train["records"]) == ("ShardsSource", 8)
    (described,) = train["files"].values()
    manifest = folder / "data" / "train.shards" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert list(train["files"]) == ["data/train.shards"]
    assert described["sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert described["bytes"] == sum(shard["bytes"] for shard in content["shards"])
    assert described["manifest"] == {name: value for name, value in content.items() if name != "shards"}


def test_another_manifest_is_a_file_like_others(tmp_path: Path) -> None:
    for content in ("{}", "no json"):
        (tmp_path / "manifest.json").write_text(content)
        described = describe(tmp_path)
        assert (described["files"], described["bytes"]) == (1, len(content))
        assert "manifest" not in described


def test_a_mixture_tells_what_was_skipped(folder: Path, tiny_model: Path) -> None:
    part = {"class_path": "data_modules.sources.JsonlSource"}
    parts = [
        part | {"init_args": {"path": "data/train.jsonl", "on_error": "skip"}},
        part | {"init_args": {"path": "data/val.jsonl"}},
    ]
    mixed = {"class_path": "data_modules.sources.MixedSource", "init_args": {"sources": parts}}
    more = (f"--data.init_args.train={json.dumps(mixed)}", *STEPS, "--trainer.limit_val_batches=0")
    train_in(folder, command("sft", "lora", "permutations", "mixed", *more, model=tiny_model))
    train = json.loads((folder / "mixed" / "run.json").read_text())["data"]["train"]
    assert (train["records"], train["skipped"]) == (10, 1)
    assert train["first_skipped"].startswith("data/train.jsonl:9: ")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_what_evaluates_is_told_of_but_not_in_a_trainings_place(
    folder: Path, tiny_model: Path, run: Path, record: dict[str, Any], stage: str
) -> None:
    config = (run / "config.yaml").read_text()
    for window in (3, 4):
        more = (f"--model.init_args.reranking.window={window}", "--model.init_args.reranking.stride=2")
        for name in ("run", f"only-{stage}"):
            train_in(folder, command("sft", "lora", "permutations", name, *more, model=tiny_model, stage=stage))
        own = json.loads((folder / f"only-{stage}" / "run.json").read_text())
        assert own["stage"] == stage
        assert own["config"]["model"]["init_args"]["reranking"]["window"] == window
        assert own["data"]["candidates"]["records"] == 3
    assert json.loads((run / "run.json").read_text()) == record
    assert (run / "config.yaml").read_text() == config


def test_a_dry_run_compares_shards_with_their_manifest(folder: Path, tiny_model: Path) -> None:
    shutil.copytree(folder / "data" / "train.shards", folder / "data" / "changed.shards")
    manifest = folder / "data" / "changed.shards" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["sha256"] = 64 * "0"
    manifest.write_text(json.dumps(content))
    changed = ("--data.init_args.train.init_args.path=data/changed.shards", "--dry_run")
    with pytest.raises(SystemExit, match=r"^error: [^\n]*is not the file that manifest\.json beside it describes"):
        train_in(folder, command("sft", "lora", "permutations", "dry", *STEPS, *STREAMED, *changed, model=tiny_model))


def test_a_dry_run_counts_the_examples_of_streamed_data(folder: Path, tiny_model: Path) -> None:
    twice = ("--data.init_args.augmentation.windows_per_record=2", "--dry_run", "--trainer.limit_val_batches=0")
    epochs = ("--data.init_args.batch_size=3", "--trainer.max_steps=-1", "--trainer.max_epochs=2")
    train_in(
        folder, command("sft", "lora", "permutations", "dry-streamed", *STREAMED, *twice, *epochs, model=tiny_model)
    )
    found = json.loads((folder / "dry-streamed" / "dry_run.json").read_text())
    assert "train.records" not in found  # none is in memory
    assert found["examples_an_epoch"] == 16
    assert found["steps"] == 2 * 6  # of 3 examples each, the last of 1
    assert found["batch.loss"] > 0


def test_tensorboard_shows_the_same(run: Path, record: dict[str, Any]) -> None:
    events = EventAccumulator(str(run), size_guidance={TENSORS: 0})
    events.Reload()
    shown = json.loads(events.Tensors(TAG)[0].tensor_proto.string_val[0])
    assert shown == {name: value for name, value in record.items() if name != "step"}


def test_a_step_is_measured(run: Path, record: dict[str, Any]) -> None:
    step = record["step"]
    assert step["examples_a_step"] == 4 == step["batch_size"] * step["accumulate_grad_batches"] * step["processes"]
    assert step["steps"] == 6
    assert 0 < step["trained_parameters"] < step["parameters"]
    rows = figures(run)
    assert len(rows) == 6
    assert 400 < step["tokens_a_step"] < 8000
    assert step["tokens_per_s"] == pytest.approx(step["tokens_a_step"] / step["seconds_a_step"], rel=0.01)
    assert step["seconds_left_at_first"] == pytest.approx(2 * step["seconds_a_step"], abs=0.1)


def test_the_start_is_said(folder: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(folder, tiny_model, "said", "--trainer.limit_val_batches=0")
    assert "in 6 steps of 4 examples (batch_size 2 x accumulate_grad_batches 2 x processes 1)" in caplog.text
    assert "tokens a step, " in caplog.text
    assert "left without validation: until 2" in caplog.text


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_dry_run_reads_and_trains_nothing(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    more = ["--dry_run", "--data.init_args.train.init_args.on_error=skip", *STEPS]
    train_in(folder, command("sft", "lora", "permutations", f"dry-{stage}", *more, model=tiny_model, stage=stage))
    assert [file.name for file in (folder / f"dry-{stage}").iterdir()] == ["dry_run.json"]
    found = json.loads((folder / f"dry-{stage}" / "dry_run.json").read_text())
    said = capsys.readouterr().out
    assert all(name in said for name in found)
    assert found["candidates.records"] == 3
    assert found["candidates.prompt_tokens"] > 50
    assert ("val.batch.tokens" in found) == (stage in ("fit", "validate"))
    if stage == "fit":
        assert found["train.records"] == found["examples_an_epoch"] == 8
        assert found["examples_a_step"] == 4
        assert found["steps"] == 6
        assert found["batch.longest_example"] < found["batch.tokens"] < 2 * found["batch.longest_example"]
        assert found["batch.loss"] > 0


def test_a_dry_run_leaves_an_earlier_run_alone(
    folder: Path, tiny_model: Path, run: Path, record: dict[str, Any]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    fit(folder, tiny_model, "run", *REPLAYED, "--dry_run", "--ckpt_path=run/checkpoints/last.ckpt")
    after = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    assert after == before | {run / "dry_run.json": after[run / "dry_run.json"]}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--data.init_args.train.init_args.path=none.jsonl"], "none.jsonl does not exist"),
        (["--model.init_args.backbone.adapter=./none"], "./none"),
        (["--data.init_args.candidates=null"], "no list of data.candidates has judgements"),
        (["--model.init_args.prompt.max_length=60"], "exceed the context of 60"),
        (["--ckpt_path=none.ckpt"], "Checkpoint file not found: none.ckpt"),
        (["--ckpt_path=run/checkpoints/last.ckpt", "--model.init_args.backbone.lora.r=3"], "of another backbone"),
        (
            ["--ckpt_path=last", "--trainer.default_root_dir=run", "--model.init_args.backbone.lora.r=3"],
            "of another backbone",
        ),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=-1"], "set trainer.max_epochs or trainer.max_steps"),
    ],
    ids=[
        "no data",
        "no adapter",
        "nothing to measure",
        "too long",
        "no checkpoint",
        "other checkpoint",
        "last",
        "endless",
    ],
)
def test_a_dry_run_finds_what_is_wrong(
    folder: Path, tiny_model: Path, run: Path, more: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(folder, tiny_model, "wrong", "--dry_run", *more)
    assert str(stopped.value.code).startswith("error: ")
    assert expected in str(stopped.value.code)


def test_dpo_and_four_bits_run_dry(folder: Path, tiny_model: Path, run: Path) -> None:
    more = ["--dry_run", "--model.init_args.backbone.adapter=run/adapter", "--data.init_args.negatives=sampled:1"]
    skip = "--data.init_args.train.init_args.on_error=skip"
    train_in(folder, command("dpo", "qlora", "preferences", "dry-dpo", skip, *more, model=tiny_model))
    found = json.loads((folder / "dry-dpo" / "dry_run.json").read_text())
    assert found["batch.loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same
    record = json.loads((run / "run.json").read_text())
    assert found["parameters"] == record["step"]["parameters"] + record["step"]["trained_parameters"]  # the reference's


class Validated(RunOverview):
    """What it leaves out of the time that steps take."""

    def on_fit_start(self, *args: Any) -> None:
        pass

    def on_train_start(self, *args: Any) -> None:
        self._since: float | None = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        pass

    def on_train_end(self, *args: Any) -> None:
        self.left_out = cast(float, self._since)


def test_the_time_of_a_step_has_no_validation_in_it(tmp_path: Path) -> None:
    overview = Validated()
    options: dict[str, Any] = {"val_check_interval": 1, "limit_val_batches": 1, "enable_progress_bar": False}
    bare_trainer(tmp_path, overview, max_steps=2, **options).fit(BoringModel())
    assert overview.left_out > 0


class Greedy(L.Callback):
    """Asks for more memory than there is, in training or in predict."""

    def on_train_batch_start(self, *args: Any) -> None:
        torch.empty(2**55, dtype=torch.uint8)

    on_predict_batch_start = on_train_batch_start


@pytest.mark.parametrize(
    ("stage", "more", "advice"),
    [
        (
            "fit",
            ["--data.init_args.batch_size=8"],
            "--data.init_args.batch_size=4 (it is 8) --trainer.accumulate_grad_batches=2 (it is 1)",
        ),
        ("fit", ["--data.init_args.batch_size=1"], "--data.init_args.augmentation.max_size (it is 20)"),
        ("fit", [], "--model.init_args.backbone.load_in_4bit=true"),
        ("fit", [], "--model.init_args.backbone.gradient_checkpointing=true"),
        ("predict", [], "--model.init_args.reranking.max_batch_tokens=10000 (it is 20000)"),
    ],
)
def test_without_memory_the_settings_to_change_are_named(
    folder: Path, tiny_model: Path, stage: str, more: list[str], advice: str
) -> None:
    greedy = [f"--trainer.callbacks+={Greedy.__module__}.{Greedy.__name__}", "--trainer.num_sanity_val_steps=0"]
    skip = "--data.init_args.train.init_args.on_error=skip"
    args = command("sft", "lora", "permutations", "greedy", skip, *greedy, *more, model=tiny_model, stage=stage)
    with pytest.raises(SystemExit) as stopped:
        train_in(folder, args)
    message = str(stopped.value.code)
    assert message.startswith("error: out of memory: ")
    assert advice in message
    assert "\n" not in message


def allocate() -> None:
    torch.empty(2**55, dtype=torch.uint8)


def list_without_end() -> None:
    bytearray(2**62)


@pytest.mark.parametrize(
    "place",
    [
        "transformers.AutoModelForCausalLM.from_pretrained",
        "lightning.pytorch.strategies.SingleDeviceStrategy.model_to_device",
    ],
)
def test_without_memory_for_the_weights(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(place, lambda *args, **options: allocate())
    expected = r"^error: out of memory: .*The weights alone are too many: --model.init_args.backbone.dtype=bfloat16"
    with pytest.raises(SystemExit, match=expected):
        fit(folder, tiny_model, "greedy")


@pytest.mark.parametrize("ask", [allocate, list_without_end])
def test_want_of_memory_is_known(ask: Callable[[], None]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        ask()
    assert out_of_memory(raised.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("a defect"))


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    code = tmp_path / "package" / "code.py"
    code.parent.mkdir()
    code.write_text("1\n")
    assert git_state(code) is None  # in no checkout
    git("init", "-q")
    assert git_state(code) is None  # as where it is installed into a .venv in a checkout of something else
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert git_state(code) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new.txt").write_text("untracked")
    assert git_state(code) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    code.write_text("2\n")
    assert git_state(code) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_directory_is_told_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.parquet").write_bytes(b"12345")
    before = describe(tmp_path)
    assert (before["bytes"], before["files"]) == (5, 1)
    (tmp_path / "sub" / "b.parquet").write_bytes(b"1")
    after = describe(tmp_path)
    assert (after["bytes"], after["files"]) == (6, 2)
    assert after["sha256"] != before["sha256"]
