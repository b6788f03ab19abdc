"""A resumed run goes on as if it had never stopped, and a checkpoint holds no more than that takes."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_modules.preference import PreferenceDataModule
from lit_rerank.adapter_checkpoint import AdapterCheckpoint, _keep_previous
from lit_rerank.json_lines import JsonLinesLogger
from lit_rerank.rng import rng_state, set_rng_state
from lit_rerank.whole import damage
from tests.training import CONFIGS, Crash, command, figures, train_in, write_data

CRASH = f"{Crash.__module__}.{Crash.__name__}"
COMMON = (
    "--data.init_args.batch_size=1",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.precision=32-true",
    "--checkpoint.every_n_train_steps=1",
    "--model.init_args.optimizer.lr=0.01",
    "--trainer.num_sanity_val_steps=1",
)
DROPOUT = "--model.init_args.backbone.lora.dropout=0.1"
EPOCHS = ("--trainer.max_epochs=2",)  # 8 windows, 2 at a step: 8 steps
STEPS = ("--trainer.max_epochs=3", "--trainer.max_steps=6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def adapter(folder: Path, tiny_model: Path) -> str:
    """Where DPO starts; its dropout comes with it."""
    args = command("sft", "lora", "permutations", "sft", "--trainer.max_steps=1", *COMMON, DROPOUT, model=tiny_model)
    train_in(folder, args)
    return str(folder / "sft" / "adapter")


def check_checkpoint(checkpoints: Path) -> None:
    """It holds what the adapter beside it holds, and the state of optimizer, loop and randomness."""
    checkpoint = torch.load(checkpoints / "last.ckpt", weights_only=True)
    names = list(checkpoint["state_dict"])
    adapter = load_file(checkpoints / "last" / "adapter" / "adapter_model.safetensors")
    assert all(".default" in name for name in names)
    assert len(names) == len(adapter) == len(checkpoint["optimizer_states"][0]["state"])
    for name, value in adapter.items():
        head, tail = name.removeprefix("base_model.model.").rsplit(".", 1)
        torch.testing.assert_close(checkpoint["state_dict"][f"model.base_model.model.{head}.default.{tail}"], value)
    (state,) = checkpoint["processes"]
    assert set(state["rng"]) == {"python", "numpy", "torch", "cuda"}
    assert not state["figures"]
    assert "gradients" not in checkpoint
    assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]


def check_resume(folder: Path, name: str, args: list[str], crashes: tuple[int, ...]) -> None:
    """Every step's figures after each crash are exactly those of the run that was not interrupted."""

    def compared(name: str) -> bool:
        return name.startswith(("train/", "lr", "val/")) and not name.startswith("train/tokens")

    def run(run: str, *more: str) -> dict[int, dict[str, float]]:
        train_in(folder, [*args, f"--trainer.default_root_dir={run}", *more])
        steps = figures(folder / run)
        return {step: {name: value for name, value in row.items() if compared(name)} for step, row in steps.items()}

    whole = run(f"{name}-whole")
    losses = [(row.get("train/loss"), row.get("train/replay_loss")) for row in whole.values()]
    assert len(set(losses)) == len(whole) >= 6
    for crash in crashes:
        with pytest.raises(RuntimeError, match="power cut"):
            run(f"{name}-{crash}", f"--trainer.callbacks+={CRASH}", f"--trainer.callbacks.at={crash}")
        (folder / f"{name}-{crash}" / "metrics.jsonl").unlink()
        resumed = run(f"{name}-{crash}", f"--ckpt_path={name}-{crash}/checkpoints/last.ckpt")
        assert min(resumed) == crash + 1
        assert resumed == {step: row for step, row in whole.items() if step > crash}
    check_checkpoint(folder / f"{name}-whole" / "checkpoints")


def test_sft_with_lora_resumes_at_the_end_and_in_the_middle_of_an_epoch(folder: Path, tiny_model: Path) -> None:
    args = command("sft", "lora", "permutations", "", *COMMON, *EPOCHS, DROPOUT, model=tiny_model)
    check_resume(folder, "sft-lora", args, crashes=(4, 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_after_the_last_step_of_an_epoch_that_no_validation_follows(
    folder: Path, tiny_model: Path, workers: int
) -> None:
    amid = ("--trainer.val_check_interval=6", f"--data.init_args.num_workers={workers}")
    args = command("sft", "lora", "permutations", "", *COMMON, *EPOCHS, *amid, DROPOUT, model=tiny_model)
    check_resume(folder, f"sft-epoch-{workers}", args, crashes=(4,))


def test_a_run_that_was_stopped_amid_an_epoch_goes_on_there(folder: Path, tiny_model: Path) -> None:
    args = command(
        "sft", "lora", "permutations", "stopped", *COMMON, "--trainer.max_epochs=1", DROPOUT, model=tiny_model
    )
    train_in(folder, [*args, "--trainer.default_root_dir=stopped-whole"])
    stop = CRASH.replace("Crash", "Stop")
    train_in(folder, [*args, f"--trainer.callbacks+={stop}", "--trainer.callbacks.at=2"])
    assert max(figures(folder / "stopped")) == 2
    train_in(folder, [*args, "--ckpt_path=last"])
    whole, resumed = (figures(folder / run) for run in ("stopped-whole", "stopped"))
    assert list(whole) == [1, 2, 3, 4]
    for step, row in whole.items():
        known = [name for name in row if name.startswith(("train/", "lr")) and "tokens" not in name]
        assert {name: resumed[step].get(name) for name in known} == {name: row[name] for name in known}, step
    assert resumed[4]["val/loss"] == whole[4]["val/loss"]


def test_a_run_that_stops_again_before_it_has_gone_on_resumes(folder: Path, tiny_model: Path) -> None:
    """It validates first, and what it saves then is where it was resumed: dropout would tell."""
    args = command(
        "sft",
        "lora",
        "permutations",
        "again",
        *COMMON,
        *EPOCHS,
        "--trainer.val_check_interval=2",
        DROPOUT,
        model=tiny_model,
    )
    train_in(folder, [*args, "--trainer.default_root_dir=again-whole"])
    for crash in (f"{CRASH}BeforeValidation", CRASH):
        more = (f"--trainer.callbacks+={crash}", "--trainer.callbacks.at=2", "--ckpt_path=last")
        with pytest.raises(RuntimeError, match="power cut"):
            train_in(folder, [*args, *more])
    train_in(folder, [*args, "--ckpt_path=last"])
    whole, again = (figures(folder / run) for run in ("again-whole", "again"))
    assert len(whole) == 8
    for step, row in whole.items():
        assert {k: again[step][k] for k in row if "tokens" not in k} == {
            k: v for k, v in row.items() if "tokens" not in k
        }


def test_sft_with_qlora_and_worker_processes_resumes(folder: Path, tiny_model: Path) -> None:
    args = command("sft", "qlora", "permutations", "", *COMMON, *STEPS, DROPOUT, model=tiny_model)
    check_resume(folder, "sft-qlora", [*args, "--data.init_args.num_workers=2"], crashes=(5,))


def test_replay_resumes(folder: Path, tiny_model: Path) -> None:
    replay = f"--config={CONFIGS / 'data' / 'replay.yaml'}"
    share = "--data.init_args.replay_share=0.35"  # 4 of 12 examples
    args = command("sft", "lora", "permutations", "", *COMMON, replay, share, *EPOCHS, DROPOUT, model=tiny_model)
    check_resume(folder, "sft-replay", args, crashes=(5,))
    rows = figures(folder / "sft-replay-whole").values()
    assert 3 < sum("train/replay_loss" in row for row in rows) < len(rows)


def test_streamed_records_resume(folder: Path, tiny_model: Path) -> None:
    streaming = (f"--config={CONFIGS / 'data' / 'streaming.yaml'}", "--data.init_args.num_workers=0")
    args = command("sft", "lora", "permutations", "", *COMMON, *streaming, *EPOCHS, DROPOUT, model=tiny_model)
    check_resume(folder, "sft-streamed", [*args, "--data.init_args.shuffle_buffer=3"], crashes=(3, 5))


@pytest.mark.parametrize("backbone", ["lora", "qlora"])
def test_dpo_resumes(folder: Path, tiny_model: Path, adapter: str, backbone: str) -> None:
    start = f"--model.init_args.backbone.adapter={adapter}"
    args = command("dpo", backbone, "preferences", "", *COMMON, *STEPS, start, model=tiny_model)
    check_resume(folder, f"dpo-{backbone}", [*args, "--data.init_args.negatives=all"], crashes=(3,))


@pytest.mark.parametrize("other", ["full", "lora"])
def test_a_checkpoint_of_another_backbone_is_refused_in_one_line(
    folder: Path, tiny_model: Path, adapter: str, other: str
) -> None:
    args = command("sft", other, "permutations", "other", *COMMON, *STEPS, model=tiny_model)
    more = ["--model.init_args.backbone.lora.r=4"] if other == "lora" else []
    with pytest.raises(SystemExit, match=r"^error: the checkpoint is of another backbone or adapter: [^\n]*$"):
        train_in(folder, [*args, *more, "--ckpt_path=sft/checkpoints/last.ckpt"])


def test_a_checkpoint_of_something_else_is_refused(folder: Path, tiny_model: Path, adapter: str) -> None:
    checkpoint = folder / Path(adapter).parent / "checkpoints" / "last.ckpt"
    foreign = torch.load(checkpoint, weights_only=True)
    del foreign["processes"]
    torch.save(foreign, folder / "foreign.ckpt")
    args = command("sft", "lora", "permutations", "foreign", *COMMON, *STEPS, DROPOUT, model=tiny_model)
    with pytest.raises(SystemExit, match=r"^error: the checkpoint does not hold where its run stood: [^\n]*$"):
        train_in(folder, [*args, "--ckpt_path=foreign.ckpt"])


@pytest.mark.parametrize(
    ("setting", "was", "here"),
    [
        ("data.init_args.batch_size=2", "data.batch_size 1", "data.batch_size 2"),
        ("data.init_args.num_workers=2", "data.num_workers 0", "data.num_workers 2"),
        ("trainer.accumulate_grad_batches=1", "trainer.accumulate_grad_batches 2", "trainer.accumulate_grad_batches 1"),
        ("data.init_args.augmentation.max_size=3", "data.augmentation.max_size 20", "data.augmentation.max_size 3"),
        (
            "model.init_args.prompt.max_passage_tokens=7",
            "prompt.max_passage_tokens None",
            "prompt.max_passage_tokens 7",
        ),
        ("data.init_args.train.init_args.path=data/val.jsonl", "records of data.train 8", "records of data.train 2"),
        (
            'data.init_args.replay={"class_path": "data_modules.sources.MessagesSource", "init_args": {"path": '
            '"data/replay.jsonl"}}',
            "data.replay_share None, records of data.replay None",
            "data.replay_share 0.1, records of data.replay 5",
        ),
        ("model.init_args.optimizer.lr=0.5", "optimizer.lr 0.01", "optimizer.lr 0.5"),
        ("model.init_args.replay_loss=distillation", "replay_loss cross_entropy", "replay_loss distillation"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry_run",)], ids=["fit", "dry_run"])
def test_a_run_that_deals_its_examples_otherwise_is_not_resumed(
    folder: Path, tiny_model: Path, adapter: str, setting: str, was: str, here: str, more: tuple[str, ...]
) -> None:
    args = command("sft", "lora", "permutations", "otherwise", *COMMON, *STEPS, DROPOUT, *more, model=tiny_model)
    said = rf"^error: the checkpoint is of a run with {was}, and this one has {here}: [^\n]*$"
    with pytest.raises(SystemExit, match=said):
        train_in(folder, [*args, f"--{setting}", "--ckpt_path=sft/checkpoints/last.ckpt"])


def test_what_stands_against_the_teachers_choices_is_compared_too() -> None:
    for negatives in ("hardest", "sampled:2"):
        assert PreferenceDataModule(negatives).state_dict()["data.negatives"] == negatives


def test_a_resumed_run_does_not_save_what_it_was_resumed_from(
    folder: Path, tiny_model: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = AdapterCheckpoint._save_checkpoint

    def noted(self: AdapterCheckpoint, trainer: L.Trainer, filepath: str) -> None:
        saved.append(trainer.global_step)
        save(self, trainer, filepath)

    monkeypatch.setattr(AdapterCheckpoint, "_save_checkpoint", noted)
    args = command("sft", "lora", "permutations", "later", *COMMON, "--trainer.max_steps=3", DROPOUT, model=tiny_model)
    train_in(folder, [*args, "--ckpt_path=sft/checkpoints/last.ckpt"])
    assert sorted(set(saved)) == [2, 3]


def test_a_checkpoint_that_is_a_folder_keeps_the_one_before_it(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    for number in range(4):
        if last.exists():
            _keep_previous(last)
        last.mkdir()
        (last / "weights").write_text(str(number))
    assert (tmp_path / "last-previous.ckpt" / "weights").read_text() == "2"


class Terminate(L.Callback):
    """Sends SIGTERM to this process when batch `at` of the epoch is learned from, or in validation `validation`."""

    def __init__(self, at: int = -1, validation: int = -1) -> None:
        self.at, self.validation, self.validations = at, validation, 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            if self.validations == self.validation:
                os.kill(os.getpid(), signal.SIGTERM)
            self.validations += 1


AMID = {
    "accumulation": (["at=4"], 2),
    "step that validation follows": (["at=5"], 3),
    "accumulation that validation follows": (["at=2"], 1),
    "validation amid an accumulation": (["validation=0"], 1),
    "validation at the end": (["validation=3"], 8),
}


@pytest.mark.parametrize("amid", AMID)
def test_sigterm_ends_a_run_that_goes_on_exactly(
    folder: Path, tiny_model: Path, amid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 batches an epoch, 2 a step; validation after batches 3 and 6."""
    options, step = AMID[amid]
    args = command("sft", "lora", "permutations", "", *COMMON, *EPOCHS, DROPOUT, model=tiny_model)
    args += ["--trainer.val_check_interval=3"]
    if step == 8:
        args += ["--trainer.val_check_interval=4"]
    whole, name = f"whole-{step == 8}", f"terminated-{amid.replace(' ', '-')}"
    if not (folder / whole).exists():
        train_in(folder, [*args, f"--trainer.default_root_dir={whole}"])
    callback = [f"--trainer.callbacks+={Terminate.__module__}.{Terminate.__name__}"]
    callback += [f"--trainer.callbacks.{option}" for option in options]
    args += [f"--trainer.default_root_dir={name}"]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            train_in(folder, [*args, *callback])
    finally:
        signal.signal(signal.SIGTERM, handler)  # a process that has been asked to end keeps its own
    assert ended.value.code == 143
    assert len(figures(folder / name)) >= step - 1
    train_in(folder, [*args, "--ckpt_path=last"])
    for rows in (resumed := figures(folder / name)), (expected := figures(folder / whole)):
        for row in rows.values():
            for name in ("train/tokens", "train/tokens_per_s"):  # logged after the checkpoint of their step
                row.pop(name, None)
    assert resumed == expected
    assert sum("val/nDCG@10" in row for row in expected.values()) == 4


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_it(
    folder: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = command("sft", "lora", "permutations", "damaged", *COMMON, *STEPS, model=tiny_model)
    train_in(folder, args)
    whole, run = figures(folder / "damaged"), folder / "damaged" / "checkpoints"
    (run / ".." / "metrics.jsonl").unlink()
    last, previous = run / "last.ckpt", run / "last-previous.ckpt"
    assert [torch.load(file, weights_only=True)["global_step"] for file in (previous, last)] == [5, 6]
    later = last.stat().st_mtime + 10
    os.utime(previous, (later, later))  # as in a copy of the folder: it is the one before all the same
    train_in(folder, [*args, "--ckpt_path=last"])
    assert not (folder / "damaged" / "metrics.jsonl").exists()  # all steps were done
    os.truncate(last, 5000)
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: the checkpoint [^\n]*last.ckpt cannot be used: [^\n]*$"):
        train_in(folder, [*args, "--ckpt_path=damaged/checkpoints/last.ckpt"])
    train_in(folder, [*args, "--ckpt_path=last"])
    resumed = figures(folder / "damaged")
    assert list(resumed) == [6]
    assert resumed[6]["train/loss"] == whole[6]["train/loss"]
    assert [damage(file) for file in (previous, last)] == [None, None]  # the damaged one has not become the previous
    for file in (last, previous):
        os.truncate(file, 5000)
    for best in run.glob("step=*.ckpt"):
        best.unlink()
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: no checkpoint is whole: [^\n]*$"):
        train_in(folder, [*args, "--ckpt_path=last"])


@pytest.mark.parametrize(
    "saved",
    [
        (),
        ("--trainer.limit_val_batches=0", "--checkpoint.monitor=null"),
        ("--trainer.val_check_interval=4",),
    ],
    ids=["after validation", "without validation", "validation amid the epoch"],
)
def test_a_run_of_so_many_steps_goes_on_at_an_epochs_end(
    folder: Path, tiny_model: Path, tmp_path: Path, saved: tuple[str, ...]
) -> None:
    """4 steps an epoch: Lightning by itself would leave out the second one."""
    steps = ("--trainer.max_epochs=-1", "--trainer.max_steps=6", "--checkpoint.every_n_train_steps=4")
    args = command("sft", "lora", "permutations", "", *COMMON, *steps, *saved, model=tiny_model)
    crash = (f"--trainer.callbacks+={CRASH}", "--trainer.callbacks.at=5")
    whole, run = (f"--trainer.default_root_dir={tmp_path / name}" for name in ("whole", "run"))
    train_in(folder, [*args, whole])
    with pytest.raises(RuntimeError, match="power cut"):
        train_in(folder, [*args, run, *crash])
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    (tmp_path / "run" / "metrics.jsonl").unlink()
    train_in(folder, [*args, run, "--ckpt_path=last"])
    resumed, expected = (
        {step: {k: v for k, v in row.items() if k != "train/tokens_per_s"} for step, row in figures(path).items()}
        for path in (tmp_path / "run", tmp_path / "whole")
    )
    assert resumed == {step: expected[step] for step in (5, 6)}


def test_without_a_last_checkpoint_the_best_is_gone_on_from(folder: Path, tiny_model: Path) -> None:
    args = command("sft", "lora", "permutations", "best", *COMMON, *STEPS, model=tiny_model)
    args += ["--checkpoint.save_last=false", "--trainer.check_val_every_n_epoch=1"]
    train_in(folder, args)
    whole = figures(folder / "best")
    (best,) = (folder / "best" / "checkpoints").glob("*.ckpt")
    step = torch.load(best, weights_only=True)["global_step"]
    (folder / "best" / "metrics.jsonl").unlink()
    train_in(folder, [*args, "--ckpt_path=last"])
    resumed = figures(folder / "best")
    assert step < 6
    assert list(resumed) == list(range(step + 1, 7))
    assert [row["train/loss"] for row in resumed.values()] == [whole[number]["train/loss"] for number in resumed]


def test_half_a_line_of_figures_is_cut_off(tmp_path: Path) -> None:
    """As a run leaves it that was killed while it wrote, or found the disk full."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "train/loss": 2.0}\n{"step": 1, "tra')
    logger = JsonLinesLogger(str(tmp_path))
    for loss in (1.5, 1.0):
        logger.log_metrics({"train/loss": loss}, 1)
    assert figures(tmp_path) == {1: {"train/loss": 2.0}, 2: {"train/loss": 1.0}}
    assert file.read_text().count("\n") == 3


def test_the_state_of_randomness_survives_saving(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    torch.save(rng_state(), tmp_path / "state.pt")
    expected = draws()
    assert draws() != expected
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws() == expected
