"""train.py from end to end: what a run leaves behind, how it goes on, and what a mistake looks like."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from torch.utils.data import DataLoader

from data_modules.records import Window
from data_modules.sources import CandidatesSource
from data_modules.trec import read_run
from lit_rerank import Reranker, SFTModule
from lit_rerank.adapter_checkpoint import AdapterCheckpoint
from lit_rerank.backbone import BackboneSettings, load_tokenizer
from lit_rerank.cli import in_one_line
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.metrics import TrecMetrics
from lit_rerank.reading import Reading, Rounds, SlidingWindow
from tests.tiny import record
from tests.training import command, figures, train_in, write_data

ROOT = Path(__file__).resolve().parents[1]
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.max_epochs=1", "--model.init_args.optimizer.lr=0.01")
SFT_TAGS = {"loss", "choice_loss", "choice_nll", "rest_loss", "choice_accuracy", "no_skill", "tokens", "tokens_per_s"}
DPO_TAGS = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "chosen_nll"} | {
    "preferences",
    *(f"{name}_by_step/01" for name in ("accuracy", "margin", "chosen", "rejected")),
    "tokens",
    "tokens_per_s",
}
RANKING_TAGS = {"val/nDCG@10", "val/RR@10", "val/loss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("runs"))


def tensorboard(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={TENSORS: 0})
    events.Reload()
    return events


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(next(directory.glob("*.safetensors")))


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def check_run(run: Path, left: str, tags: set[str]) -> None:
    """The files of a two-step run, and what TensorBoard shows of it."""
    for name in ("step=2", "last"):
        assert (run / "checkpoints" / f"{name}.ckpt").is_file()
        assert equal(run / "checkpoints" / name / left, run / left)
    assert json.loads((run / left / "lit_rerank.json").read_text())["format"] == "chain"
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    events = tensorboard(run)
    shown = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in tags} | RANKING_TAGS | {"lr-AdamW"} <= shown
    assert len(events.Scalars("train/loss")) == 2
    assert len(events.Scalars("val/nDCG@10")) == 1
    by_step = figures(run)
    assert list(by_step) == [1, 2]
    assert {f"train/{name}" for name in tags} | {"lr-AdamW"} <= set(by_step[1])
    assert set(by_step[2]) >= RANKING_TAGS
    (text, *_) = [tag for tag in events.Tags()["tensors"] if tag.startswith("reranked/c0")]
    content = events.Tensors(text)[0].tensor_proto.string_val[0].decode()
    assert "**prompt**" in content
    assert "how long do fleas live, c0?" in content
    assert "**model**" in content
    assert "**teacher or grades**\n\n    [1] 0, [2] 1, [3] 2, [4] 3" in content
    if "choice_loss" in tags:  # SFT's validation windows have a teacher
        (text,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("reranked/v0")]
        content = events.Tensors(text)[0].tensor_proto.string_val[0].decode()
        assert "**teacher or grades**\n\n    Step 1: [" in content


def test_a_run_in_a_used_folder_replaces_its_logs(folder: Path, tiny_model: Path) -> None:
    args = command("sft", "lora", "permutations", "again", *TWO_STEPS, model=tiny_model)
    for _ in range(2):
        train_in(folder, args)
        lines = (folder / "again" / "metrics.jsonl").read_text().splitlines()
        assert sum("train/loss" in line for line in lines) == 2
        assert len(list((folder / "again").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("backbone", ["lora", "qlora", "full"])
def test_sft_then_dpo(folder: Path, tiny_model: Path, backbone: str) -> None:
    left = "model" if backbone == "full" else "adapter"
    sft, dpo = f"sft-{backbone}", f"dpo-{backbone}"
    train_in(folder, command("sft", backbone, "permutations", sft, *TWO_STEPS, model=tiny_model))
    check_run(folder / sft, left, SFT_TAGS)
    if backbone == "full":
        more = ["--model.init_args.reference.class_path=lit_rerank.reference.SeparateModel"]
        start = str(folder / sft / "model")
    else:
        more = [f"--model.init_args.backbone.adapter={sft}/adapter"]
        start = str(tiny_model)
    more.append("--data.init_args.negatives=all")
    train_in(folder, command("dpo", backbone, "preferences", dpo, *TWO_STEPS, *more, model=start))
    check_run(folder / dpo, left, DPO_TAGS)
    assert not equal(folder / sft / left, folder / dpo / left)
    # The reference is where SFT ended: before the first step, nothing has been gained or lost over it.
    first = figures(folder / dpo)[1]
    assert first["train/rewards/margin"] == pytest.approx(0, abs=1e-3)
    ranked = Reranker.from_pretrained(
        start if backbone != "full" else str(folder / dpo / "model"),
        str(folder / dpo / "adapter") if backbone != "full" else None,
        load_in_4bit=backbone == "qlora",
    ).rank("how long do fleas live?", ["a day", "a year", "a hundred days"])
    assert sorted(passage.docid for passage in ranked) == ["0", "1", "2"]


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_model: Path) -> Path:
    """A run of SFT, through the command itself."""
    args = command("sft", "lora", "permutations", "trained", *TWO_STEPS, model=tiny_model)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *args],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "trained" / "output.txt").write_text(done.stdout + done.stderr)
    return folder / "trained"


def test_the_command_says_nothing_that_users_cannot_act_upon(trained: Path) -> None:
    said = (trained / "output.txt").read_text()
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in said
    said = re.sub(r"(?m)^warning: precision bf16-mixed: this processor multiplies .* set --trainer.*$", "", said)
    assert not re.search(r"warn|deprecat|tip:|kernels|litlogger|transfer_batch", said, re.IGNORECASE), said


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_measure_an_adapter_and_a_checkpoint(
    folder: Path, tiny_model: Path, trained: Path, stage: str
) -> None:
    prefix = {"validate": "val", "test": "test"}[stage]
    logged = {k.removeprefix("val/"): v for k, v in figures(trained)[2].items() if k.startswith("val/")}
    config = (trained / "config.yaml").read_text()
    for name, start in {
        "adapter": "--model.init_args.backbone.adapter=trained/adapter",
        "ckpt": "--ckpt_path=trained/checkpoints/step=2.ckpt",
    }.items():
        run = f"{stage}-{name}"
        train_in(folder, command("sft", "lora", "permutations", run, start, model=tiny_model, stage=stage))
        (row,) = figures(folder / run).values()
        measured = {k.removeprefix(f"{prefix}/"): v for k, v in row.items() if k.startswith(prefix)}
        names = set(logged) if stage == "validate" else {"nDCG@10", "RR@10"}
        assert measured == pytest.approx({k: logged[k] for k in names}, rel=1e-3)
    assert (trained / "config.yaml").read_text() == config


SLIDING = SlidingWindow(3, 2, 100, top_k=2)


@pytest.mark.parametrize(
    ("decode", "reading"),
    [("chain", SLIDING), ("first", SLIDING), ("likelihood", SLIDING), ("generate", SLIDING), ("first", Rounds(3))],
)
def test_test_ranks_as_it_is_told(folder: Path, tiny_model: Path, trained: Path, decode: Any, reading: Reading) -> None:
    """The same figures as from the Python API."""
    settings = {"decode": decode, **{name: getattr(reading, name) for name in reading.__dataclass_fields__}}
    told = (f"--model.init_args.reranking.{name}={value}" for name, value in settings.items())
    start, run = "--model.init_args.backbone.adapter=trained/adapter", f"test-{decode}-{type(reading).__name__}"
    exact = "--trainer.precision=32-true"
    train_in(folder, command("sft", "lora", "permutations", run, start, exact, *told, model=tiny_model, stage="test"))
    (row,) = figures(folder / run).values()
    assert ("test/malformed_generate" in row) == (decode == "generate")
    reranker = Reranker.from_pretrained(str(tiny_model), str(trained / "adapter"), decode=decode, reading=reading)
    records = list(CandidatesSource(folder / "data/val.candidates.jsonl", folder / "data/val.qrels.txt"))
    metric = TrecMetrics(("nDCG@10", "RR@10"))
    for ranking in reranker.reading.rerank(records, reranker.decoder):
        metric.update(ranking.record.qid, ranking.run, ranking.record.qrels)
    assert {name: row[f"test/{name}"] for name in ("nDCG@10", "RR@10")} == pytest.approx(metric.compute())


def test_predict_writes_a_run(folder: Path, tiny_model: Path, trained: Path) -> None:
    start = "--model.init_args.backbone.adapter=trained/adapter"
    train_in(folder, command("sft", "lora", "permutations", "predict", start, model=tiny_model, stage="predict"))
    run = read_run(folder / "predict" / "run.txt")
    assert {qid: sorted(docid for docid, _ in ranking) for qid, ranking in run.items()} == {
        f"c{i}": [f"c{i}-d{j}" for j in range(1, 5)] for i in range(2)
    }


def test_print_config_and_a_runs_config_lead_back_to_the_run(
    folder: Path, tiny_model: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command("sft", "lora", "permutations", "trained", *TWO_STEPS, model=tiny_model)
    printed = []
    for words in ([*args, "--print_config"], ["fit", "--config", "trained/config.yaml", "--print_config"]):
        with pytest.raises(SystemExit) as stopped:
            train_in(folder, words)
        assert not stopped.value.code
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["model"]["init_args"]["backbone"]["model"] == str(tiny_model)
    assert printed[0]["data"]["init_args"]["augmentation"]["max_size"] == 20


def test_null_on_the_command_line_is_none_however_deep(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nulls = [f"--data.init_args.candidates.init_args.{name}=null" for name in ("qrels", "depth")]
    with pytest.raises(SystemExit) as stopped:
        train_in(folder, command("sft", "lora", "permutations", "null", *nulls, "--print_config", model=tiny_model))
    assert not stopped.value.code
    given = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["candidates"]["init_args"]
    assert (given["qrels"], given["depth"]) == (None, None)
    assert given["path"] == "data/val.candidates.jsonl"


def test_without_validation_the_latest_is_kept(folder: Path, tiny_model: Path) -> None:
    nothing = [f"--data.init_args.{name}=null" for name in ("val", "candidates")]
    train_in(folder, command("sft", "lora", "permutations", "blind", *TWO_STEPS, *nothing, model=tiny_model))
    run = folder / "blind"
    assert [file.name for file in (run / "checkpoints").glob("*.ckpt")] == ["last.ckpt"]
    assert equal(run / "checkpoints" / "last" / "adapter", run / "adapter")


class Scripted(SFTModule):
    """Validates to values that were fixed beforehand."""

    script: tuple[float, ...] = ()

    def on_validation_epoch_end(self) -> None:
        self.log("val/nDCG@10", self.script[self.current_epoch])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None


@pytest.mark.parametrize(
    ("script", "keep", "kept", "best"),
    [
        ((0.2, 0.9, 0.5), 1, {2}, 2),
        ((0.2, 0.9, 0.5), 2, {2, 3}, 2),
        ((0.1, 0.2, 0.3), 1, {3}, 3),
        ((0.5,) * 3, 1, {1}, 1),
    ],
)
def test_the_runs_adapter_is_the_best_ones(
    tiny_model: Path, tmp_path: Path, script: tuple[float, ...], keep: int, kept: set[int], best: int
) -> None:
    encoder = WindowEncoder(load_tokenizer(str(tiny_model)), PromptSettings())
    batch: list[EncodedWindow] = [encoder.encode(Window.of(record("q", 3), range(3)))]
    module = Scripted(BackboneSettings(str(tiny_model)))
    module.script = script
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        callbacks=[AdapterCheckpoint(save_top_k=keep)],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, loader)
    checkpoints = tmp_path / "checkpoints"
    names = {f"step={step}" for step in kept} | {"last"}
    assert {file.stem for file in checkpoints.glob("*.ckpt")} == names | {"last-previous"}
    assert {directory.name for directory in checkpoints.iterdir() if directory.is_dir()} == names
    assert equal(tmp_path / "adapter", checkpoints / f"step={best}" / "adapter")
    assert equal(tmp_path / "adapter", checkpoints / "last" / "adapter") == (best == 3)
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 3


def untemplated(tiny_model: Path, folder: Path) -> str:
    """A model whose tokenizer has no chat template."""
    copy = folder / "untemplated"
    shutil.copytree(tiny_model, copy, dirs_exist_ok=True)
    (copy / "chat_template.jinja").unlink()
    return str(copy)


MISTAKES = {
    "wrong data path": (["--data.init_args.train.init_args.path=data/none.jsonl"], "data/none.jsonl does not exist"),
    "wrong model path": (["--model.init_args.backbone.model=./none"], "./none"),
    "wrong adapter path": (["--model.init_args.backbone.adapter=./none/adapter"], "./none/adapter"),
    "wrong config": (["--config=none.yaml"], "none.yaml"),
    "wrong checkpoint": (["--ckpt_path=none.ckpt"], "Checkpoint file not found: none.ckpt"),
    "a checkpoint every no steps": (["--checkpoint.every_n_train_steps=0"], "every_n_train_steps is 0; it must be at"),
    "unknown key": (["--config=unknown.yaml"], "'optimiser.lr' is not accepted"),
    "unknown option": (["--foo=1"], "unrecognized arguments: --foo=1"),
    "unknown class": (["--model=lit_rerank.None"], "lit_rerank.None"),
    "wrong type": (["--model.init_args.optimizer.lr=fast"], "Expected a <class 'float'>. Got value: fast"),
    "unknown format": (["--model.init_args.prompt.format=tree"], "there is no format 'tree'"),
    "unknown measure": (["--model.init_args.reranking.measures=[nDGC@10]"], "there is no measure 'nDGC@10'"),
    "senseless window": (["--model.init_args.reranking.stride=30"], "window 20, stride 30"),
    "senseless tuning": (
        ["--model.init_args.backbone.load_in_4bit=true", "--model.init_args.backbone.tune=full"],
        "4bit",
    ),
    "no adapter to freeze": (
        ["--model=lit_rerank.DPOModule", "--data=data_modules.PreferenceDataModule"],
        "FrozenAdapter needs an adapter",
    ),
    "data of the other module": (["--model=lit_rerank.DPOModule"], "DPOModule learns from PreferenceDataModule"),
    "nothing to measure": (["--data.init_args.candidates=null"], "no list of data.candidates has judgements"),
    "nothing is judged": (
        ["--data.init_args.candidates.init_args.qrels=null"],
        "no list of data.candidates has judgements",
    ),
    "broken YAML": (["--config=broken.yaml"], "broken.yaml:2: not valid YAML"),
    "no settings": (["--config=words.yaml"], "words.yaml: must hold settings"),
    "wrong layout": (["--data.init_args.train.init_args.path=broken.jsonl"], 'broken.jsonl:1: "query" is missing'),
    "adapter without its config": (["--model.init_args.backbone.adapter=data"], "the directory data holds no adapter"),
    "unknown source": (["--data.init_args.train.class_path=data_modules.sources.None"], "no attribute 'None'"),
    "negative learning rate": (["--model.init_args.optimizer.lr=-1e-4"], "optimizer.lr is -0.0001"),
    "warm-up beyond the end": (["--model.init_args.optimizer.warmup=2"], "optimizer.warmup is 2.0"),
    "rank 0": (["--model.init_args.backbone.lora.r=0"], "backbone.lora: r 0 must be"),
    "unknown layers": (["--model.init_args.backbone.lora.target_modules=[nope]"], "target_modules: Target modules"),
    "no GPU": (["--trainer.accelerator=gpu"], "pass --trainer.accelerator cpu"),
    "unknown accelerator": (["--trainer.accelerator=gpuu"], "trainer: You selected an invalid accelerator"),
    "a place that cannot be written": (["--trainer.default_root_dir=broken.yaml/run"], "broken.yaml/run: Not a dir"),
    "no checkpoint": (["--ckpt_path=broken.yaml"], "cannot be used: it is no checkpoint, or only a part of one"),
    "fewer than no workers": (["--data.init_args.num_workers=-1"], "data.num_workers is -1"),
    "no data": (["--data=null"], "the following arguments are required: fit.data"),
    "an abbreviation": (["--trainer.max_epoch=1"], "unrecognized arguments: --trainer.max_epoch=1"),
    "batches to overfit": (["--trainer.overfit_batches=1"], "trainer.overfit_batches would put samplers of its own"),
    "no batch": (["--data.init_args.batch_size=0"], "data.batch_size 0"),
    "monitor not logged": (["--checkpoint.monitor=val/none", *TWO_STEPS], "could not find the monitored key"),
    "no training data": (["--data.init_args.train=null"], "data.init_args.train is not set"),
    "no teacher, in a worker": (
        ["--data.init_args.train.init_args.path=data/unordered.jsonl", "--data.init_args.num_workers=1"],
        "has no teacher permutation to learn from",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(folder: Path, tiny_model: Path, mistake: str) -> None:
    if mistake == "no GPU" and torch.cuda.is_available():
        pytest.skip("here is one")
    more, expected = MISTAKES[mistake]
    (folder / "unknown.yaml").write_text("model: {init_args: {optimiser: {lr: 1}}}\n")
    (folder / "broken.yaml").write_text("model: {init_args: [\n")
    (folder / "words.yaml").write_text("just words\n")
    (folder / "broken.jsonl").write_text('{"qid": "q", "passages": []}\n')
    row = {"qid": "u", "query": "q", "passages": [{"docid": "a", "text": "b"}, {"docid": "c", "text": "d"}]}
    (folder / "data" / "unordered.jsonl").write_text(json.dumps(row) + "\n")
    args = command("sft", "lora", "permutations", "mistake", *more, model=tiny_model)
    with pytest.raises(SystemExit) as stopped:
        train_in(folder, args)
    message = str(stopped.value.code)
    assert message.startswith("error: ")
    assert expected in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert "Union" not in message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
            "error: out of memory: ",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "error: out of"),
        (KeyboardInterrupt(), "130"),
    ],
)
def test_what_stops_a_run_from_outside_is_no_traceback(error: BaseException, code: str) -> None:
    def run() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        in_one_line(run)
    assert str(stopped.value.code).startswith(code)
    assert "\n" not in str(stopped.value.code)


def test_other_errors_keep_their_traceback() -> None:
    def run() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        in_one_line(run)


def test_a_model_without_chat_template_is_told_in_one_line(folder: Path, tiny_model: Path) -> None:
    args = command("sft", "lora", "permutations", "mistake", model=untemplated(tiny_model, folder))
    with pytest.raises(SystemExit, match=r"^error: the tokenizer of .*untemplated' has no chat template: [^\n]*$"):
        train_in(folder, args)


def test_help_lists_the_projects_own_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_in(tmp_path, ["fit", "--help"])
    assert not stopped.value.code
    assert "--checkpoint.monitor" in capsys.readouterr().out
