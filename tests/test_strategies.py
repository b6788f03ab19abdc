"""Strategies for many GPUs, as far as a CPU can show: FSDP2 by two gloo processes, DeepSpeed by its configuration."""

import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_modules.trec import read_run
from lit_rerank.backbone import BackboneSettings, load_backbone
from lit_rerank.dpo import DPOModule
from lit_rerank.errors import UserError
from lit_rerank.reference import FrozenAdapter, Precomputed
from lit_rerank.sharding import is_sharded, shard
from tests.training import CONFIGS, Crash, command, figures, train_in, write_data

FSDP = CONFIGS / "trainer" / "fsdp.yaml"
ZERO = CONFIGS / "trainer" / "deepspeed_zero3.yaml"
PAIR = (
    f"--config={FSDP}",
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.strategy.init_args.data_parallel_size=2",
)
TASKS = ("lora", "full", "dpo", "distilled")


def arguments(model: Path, task: str, pair: bool, *more: str) -> list[str]:
    """Two epochs of 3 steps of 4 windows, of (in all) 10 windows."""
    name = f"{task}-{'two' if pair else 'one'}"
    own = [f"--data.init_args.batch_size={1 if pair else 2}", *(PAIR if pair else ()), "--trainer.precision=32-true"]
    own += ["--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2", "--model.init_args.optimizer.lr=0.001"]
    if task == "distilled":  # some batches are without conversations, and one process has fewer examples
        own += [f"--config={CONFIGS / 'data' / 'replay.yaml'}", "--data.init_args.replay_share=0.167"]
        own.append("--model.init_args.replay_loss=distillation")
        return command("sft", "lora", "permutations", name, *own, *more, model=model)
    if task != "dpo":
        return command("sft", task, "permutations", name, *own, *more, model=model)
    start = "--model.init_args.backbone.adapter=lora-one/adapter"
    return command("dpo", "lora", "preferences", name, *own, start, *more, model=model)


def predict(model: Path, pair: bool) -> list[str]:
    start = ("--model.init_args.backbone.adapter=lora-one/adapter", "--data.init_args.val_batch_size=1")
    name = f"predict-{'two' if pair else 'one'}"
    return command("sft", "lora", "permutations", name, *start, *(PAIR if pair else ()), model=model, stage="predict")


def work(rank: int, port: int, folder: Path, model: Path) -> None:
    """One of the two processes."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for task in TASKS:
        train_in(folder, arguments(model, task, True))
    crash = (f"--trainer.callbacks+={Crash.__module__}.{Crash.__name__}", "--trainer.callbacks.at=3")
    resumed = ("--trainer.default_root_dir=resumed", "--ckpt_path=half/checkpoints/last.ckpt")
    with pytest.raises(RuntimeError, match="power cut"):
        train_in(folder, arguments(model, "lora", True, "--trainer.default_root_dir=half", *crash))
    train_in(folder, arguments(model, "lora", True, *resumed))
    train_in(folder, predict(model, True))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Runs of one process and, with FSDP2, of two."""
    folder = write_data(tmp_path_factory.mktemp("fsdp"), train=10, val=2, candidates=5)
    for task in TASKS:
        train_in(folder, arguments(tiny_model, task, False))
    train_in(folder, predict(tiny_model, False))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, tiny_model), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def rows(run: Path) -> dict[int, dict[str, float]]:
    return {
        step: {
            name: value for name, value in row.items() if not name.startswith("train/tokens") and "accuracy" not in name
        }
        for step, row in figures(run).items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_fsdp_trains_as_one_process_does(folder: Path, task: str) -> None:
    one, two = rows(folder / f"{task}-one"), rows(folder / f"{task}-two")
    assert len(one) == 6
    for step, row in one.items():
        assert two[step] == pytest.approx(row, rel=1e-3, abs=1e-4)
    assert "val/nDCG@10" in one[6]


@pytest.mark.parametrize("task", TASKS)
def test_fsdp_writes_whole_weights(folder: Path, task: str) -> None:
    left = Path("model" if task == "full" else "adapter")
    one, two = (
        load_file(next((folder / f"{task}-{n}" / "checkpoints" / "last" / left).glob("*.safetensors")))
        for n in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-3)
    names = [
        sorted(file.name for file in (folder / f"{task}-{n}" / left).iterdir() if file.is_file())
        for n in ("one", "two")
    ]
    assert names[0] == names[1]


def test_fsdp_resumes(folder: Path) -> None:
    whole, resumed = rows(folder / "lora-two"), rows(folder / "resumed")
    assert list(resumed) == [4, 5, 6]
    for step, row in resumed.items():
        assert row == pytest.approx(whole[step], rel=1e-5, abs=1e-6)


def test_fsdp_predicts(folder: Path) -> None:
    assert read_run(folder / "predict-two" / "run.txt") == read_run(folder / "predict-one" / "run.txt")


def words(config: Path) -> list[str]:
    """The command that a file opens with."""
    return shlex.split(config.read_text().splitlines()[0])[3:]


@pytest.mark.parametrize("config", [FSDP, ZERO])
def test_the_configuration_is_read(
    config: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_data(tmp_path) / "configs").symlink_to(CONFIGS)
    with pytest.raises(SystemExit) as stopped:
        train_in(tmp_path, [*words(config), f"--model.init_args.backbone.model={tiny_model}", "--print_config"])
    assert not stopped.value.code
    read, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text())
    trainer, expected = read["trainer"], written["trainer"]
    assert read["data"]["init_args"].items() >= written.get("data", {}).get("init_args", {}).items()
    assert trainer["devices"] == 8
    assert trainer["strategy"]["class_path"] == expected["strategy"]["class_path"]
    assert trainer["strategy"]["init_args"].items() >= expected["strategy"]["init_args"].items()
    header = [line for line in config.read_text().splitlines() if line.startswith("#")]
    assert any("torchrun --nnodes 2" in line for line in header)
    assert any("srun --nodes 2" in line for line in header)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "error: To use the `DeepSpeedStrategy`, you must have DeepSpeed installed."),
        (["--trainer.accelerator=cpu", "--trainer.strategy=fsdp"], "strategy `fsdp` requires a GPU accelerator"),
    ],
    ids=["DeepSpeed", "FSDP1"],
)
def test_what_a_cpu_cannot_run_is_refused_in_one_line(
    tmp_path: Path, tiny_model: Path, more: list[str], expected: str
) -> None:
    (write_data(tmp_path) / "configs").symlink_to(CONFIGS)
    with pytest.raises(SystemExit) as stopped:
        train_in(tmp_path, [*words(ZERO), f"--model.init_args.backbone.model={tiny_model}", *more])
    assert str(stopped.value.code).startswith("error: ")
    assert expected in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)


def test_what_has_no_pieces_is_refused(tiny_model: Path, sft: Path, tmp_path: Path) -> None:
    four_bits = load_backbone(BackboneSettings(str(tiny_model), load_in_4bit=True))
    mesh: Any = object()  # is not asked
    with pytest.raises(UserError, match="FSDP cannot cut 4-bit weights into pieces"):
        shard(four_bits, mesh)
    assert not is_sharded(four_bits)
    module = DPOModule(BackboneSettings(str(tiny_model), str(sft)), Precomputed(str(tmp_path), FrozenAdapter()))
    module._device_mesh = mesh
    with pytest.raises(UserError, match="with FSDP, reference Precomputed must know all values"):
        module.configure_model()
