"""Two processes do what one does with twice the batch."""

import json
import os
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_modules.prepare import prepare
from data_modules.sources.own import write_jsonl
from data_modules.trec import read_run
from lit_rerank import adapter_checkpoint
from lit_rerank.means import Means, gather
from lit_rerank.measures import means, per_query
from lit_rerank.metrics import TrecMetrics
from lit_rerank.modules import RerankModule
from tests.test_metrics import queries
from tests.tiny import record
from tests.training import CONFIGS, command, figures, train_in, write_data

COMMON = ("--trainer.precision=32-true", "--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2")
PAIR = ("--trainer.devices=2", "--trainer.strategy=ddp")
TASKS = ("sft", "batches", "replay", "distilled", "streamed", "dpo")
METRICS = ("nDCG@10", "AP(rel=2)")


def arguments(folder: Path, model: Path, task: str, pair: bool) -> list[str]:
    """Two epochs of 3 steps, of 4, 4 and (of 10 windows) 2 windows."""
    name = f"{task}-{'two' if pair else 'one'}"
    own = [*COMMON, f"--data.init_args.batch_size={1 if pair else 2}", *(PAIR if pair else ())]
    if task == "batches" and pair:  # the step that sft accumulates
        own += ["--trainer.accumulate_grad_batches=1", "--data.init_args.batch_size=2"]
    if task == "streamed":  # an epoch of 7 records is a step, of 3 and 4 windows or of 7: one process lacks a batch
        own += [
            f"--config={CONFIGS / 'data' / 'streaming.yaml'}",
            "--data.init_args.train.init_args.path=data/odd.shards",
        ]
        own += ["--data.init_args.batch_size=1", f"--trainer.accumulate_grad_batches={4 if pair else 7}"]
        own.append("--data.init_args.num_workers=0")
    if task != "dpo":
        own.append("--model.init_args.optimizer.lr=0.001")
    if task in ("replay", "distilled"):  # 6 conversations, of 16 examples
        own += [f"--config={CONFIGS / 'data' / 'replay.yaml'}", "--data.init_args.replay_share=0.375"]
        own.append("--model.init_args.replay_weight=0.5")
    if task == "distilled":
        own.append("--model.init_args.replay_loss=distillation")
    if task != "dpo":
        return command("sft", "lora", "permutations", name, *own, model=model)
    start = f"--model.init_args.backbone.adapter={folder}/sft-one/adapter"
    return command("dpo", "lora", "preferences", name, *own, start, model=model)


def uneven(model: Path, name: str, *more: str) -> list[str]:
    """One epoch of 4 steps of 3 and of 4 records, four windows each: the first process reads nothing in the last.

    Amid that the run validates, and saves.
    """
    own = [*PAIR, f"--config={CONFIGS / 'data' / 'streaming.yaml'}", "--trainer.precision=32-true"]
    own += [f"--trainer.{each}" for each in ("max_epochs=1", "accumulate_grad_batches=4", "val_check_interval=14")]
    for each in ("train.init_args.path=data/odd.shards", "augmentation.windows_per_record=4", "batch_size=1"):
        own.append(f"--data.init_args.{each}")
    own.append("--data.init_args.num_workers=0")
    return command("sft", "lora", "permutations", name, *own, *more, model=model)


def runs(task: str) -> tuple[str, str]:
    """Of one process, and of two."""
    return f"{'sft' if task == 'batches' else task}-one", f"{task}-two"


def predict(folder: Path, model: Path, pair: bool, *more: str, name: str = "predict") -> list[str]:
    name = f"{name}-{'two' if pair else 'one'}"
    own = (f"--model.init_args.backbone.adapter={folder}/sft-one/adapter", "--data.init_args.val_batch_size=1")
    own += PAIR if pair else ()
    return command("sft", "lora", "permutations", name, *own, *more, model=model, stage="predict")


def work(rank: int, port: int, folder: Path, model: Path) -> None:
    """One of the two processes."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, Any] = {"metrics": measured(rank), "means": weighed(rank), "gathered": gather(rank)}
    results["exports"] = exports()
    for args in (
        arguments(folder, model, "sft", True),
        arguments(folder, model, "batches", True),
        arguments(folder, model, "replay", True),
        arguments(folder, model, "distilled", True),
        arguments(folder, model, "streamed", True),
        arguments(folder, model, "dpo", True),
        uneven(model, "uneven"),
        uneven(model, "uneven-resumed", "--ckpt_path=uneven/checkpoints/step=3.ckpt"),
        predict(folder, model, True),
        predict(folder, model, True, "--trainer.limit_predict_batches=1", name="stopped"),
    ):
        train_in(folder, args)
    if rank == 0:
        for copy in ("stopped-one", "stopped-kept"):
            shutil.copytree(folder / "stopped-two", folder / copy)
    dist.barrier()
    train_in(folder, predict(folder, model, True, name="stopped"))
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def measured(rank: int) -> list[dict[str, float]]:
    """Of 5 queries on both processes, one twice; of 3 on the first alone; of none."""
    run, qrels = queries(n=5)
    shares: list[tuple[list[str], list[str]]] = [
        (["q0", "q2", "q4"], ["q1", "q3", "q0"]),
        (["q0", "q1", "q2"], []),
        ([], []),
    ]
    results = []
    for share in shares:
        metric = TrecMetrics(METRICS)
        for qid in share[rank]:
            metric.update(qid, run[qid], qrels[qid])
        results.append(metric.compute())
    return results


def exports() -> list[str]:
    """The folders that this process writes an adapter to from now on."""
    folders: list[str] = []
    export = adapter_checkpoint.export

    def spied(module: RerankModule[Any], folder: Path, *weights: Any) -> Path:
        folders.append(f"{folder.parent.parent.name}/{folder.name}")
        return export(module, folder, *weights)

    adapter_checkpoint.export = spied
    return folders


def weighed(rank: int) -> dict[str, tuple[float, int]]:
    figures = Means()
    figures.add("both", float(rank), 1 + 2 * rank)
    figures.add(f"only-{rank}", 1.0, 1)
    return figures.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Runs of one process and of two, and what the two say of metrics."""
    folder = write_data(tmp_path_factory.mktemp("ddp"), train=10, val=2, candidates=5)
    write_jsonl([record(f"t{i}", 4) for i in range(7)], folder / "data" / "odd.jsonl")
    prepare(str(folder / "data" / "odd.jsonl"), output=folder / "data" / "odd.shards", shard_records=3)
    train_in(folder, arguments(folder, tiny_model, "sft", False))
    train_in(folder, arguments(folder, tiny_model, "streamed", False))
    train_in(folder, arguments(folder, tiny_model, "replay", False))
    train_in(folder, arguments(folder, tiny_model, "distilled", False))
    train_in(folder, arguments(folder, tiny_model, "dpo", False))
    train_in(folder, predict(folder, tiny_model, False))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, tiny_model), nprocs=2)  # type: ignore[no-untyped-call]
    train_in(folder, predict(folder, tiny_model, False, name="stopped"))
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("task", TASKS)
def test_parameters_are_those_of_one_process_with_twice_the_batch(folder: Path, task: str) -> None:
    one, two = (load_file(folder / f"{run}/checkpoints/last/adapter/adapter_model.safetensors") for run in runs(task))
    start = load_file(folder / "sft-one/adapter/adapter_model.safetensors") if task == "dpo" else {}
    assert set(one) == set(two)
    near, far = (1e-5, 5e-5) if task == "dpo" else (5e-5, 1e-3)  # Adam enlarges float32's small differences
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=near, rtol=1e-4)
    assert max(float((v - start.get(n, torch.zeros(()))).abs().max()) for n, v in one.items() if "lora_B" in n) > far


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_one_process_with_twice_the_batch(folder: Path, task: str) -> None:
    one, two = (figures(folder / run) for run in runs(task))
    assert len(one) == {"replay": 8, "distilled": 8, "streamed": 2}.get(task, 6)
    for step, row in one.items():
        for name in [name for name in row if name.startswith("train/tokens") or (step == 1 and "accuracy" in name)]:
            del row[name], two[step][name]  # in DPO's first step rewards are 0, but for rounding
        assert two[step] == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert "val/nDCG@10" in one[{"replay": 4, "distilled": 4, "streamed": 1}.get(task, 3)]
    assert any("train/replay_loss" in row for row in one.values()) == (task in ("replay", "distilled"))
    if task == "dpo":  # on_policy: not every window has a preference
        assert min(row["train/preferences"] for row in one.values()) < max(
            row["train/preferences"] for row in one.values()
        )


def test_measures_are_exact_with_uneven_shares_and_with_none(results: list[dict[str, Any]]) -> None:
    run, qrels = queries(n=5)
    measures = TrecMetrics(METRICS).measures
    five, three = (means(per_query(run, {q: qrels[q] for q in list(run)[:n]}, measures)) for n in (5, 3))
    for result in results:
        assert result["metrics"][0] == pytest.approx(five, abs=1e-12)
        assert result["metrics"][1] == pytest.approx(three, abs=1e-12)
        assert result["metrics"][2] == {}


def test_means_are_of_both_processes(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["means"] == {"both": [0.75, 4], "only-0": [1.0, 1], "only-1": [1.0, 1]}
        assert result["gathered"] == [0, 1]


def test_what_is_saved_while_a_process_has_nothing_to_read_goes_on(folder: Path) -> None:
    saved = torch.load(folder / "uneven" / "checkpoints" / "step=3.ckpt", weights_only=True)
    assert [bool(process["figures"]) for process in saved["processes"]] == [False, True]
    assert any(gradient.any() for gradient in saved["gradients"].values())
    whole, resumed = (
        load_file(folder / run / "checkpoints" / "last" / "adapter" / "adapter_model.safetensors")
        for run in ("uneven", "uneven-resumed")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight)


def test_predictions_hold_each_query_once(folder: Path) -> None:
    lines = (folder / "predict-two" / "run.txt").read_text().splitlines()
    assert Counter(line.split()[0] for line in lines) == dict.fromkeys((f"c{i}" for i in range(5)), 4)
    assert read_run(folder / "predict-two" / "run.txt") == read_run(folder / "predict-one" / "run.txt")


def test_predict_goes_on_where_two_processes_were_stopped(folder: Path) -> None:
    """With two of them, and with one."""
    whole = read_run(folder / "predict-one" / "run.txt")
    for number in ("one", "two"):
        assert read_run(folder / f"stopped-{number}" / "run.txt") == whole
        assert not (folder / f"stopped-{number}" / "run.parts").exists()
    parts = (folder / "stopped-kept" / "run.parts").glob("*.jsonl")
    assert {part.name: part.read_text().count("\n") for part in parts} == {"00000.jsonl": 1, "00001.jsonl": 1}


def test_files_are_written_once(folder: Path, results: list[dict[str, Any]]) -> None:
    def names(run: str) -> Counter[str]:
        files = (file.relative_to(folder / run) for file in (folder / run).rglob("*") if file.is_file())
        return Counter("events" if "tfevents" in file.name else str(file) for file in files)

    assert names("sft-one") == names("sft-two")
    # By rank 0 alone, once an epoch.
    assert results[0]["exports"].count("sft-two/last") == 2
    assert results[1]["exports"] == []
    one, two = ((folder / run / "metrics.jsonl").read_text().splitlines() for run in ("sft-one", "sft-two"))
    assert len(one) == len(two)
    assert len(torch.load(folder / "sft-two/checkpoints/last.ckpt", weights_only=True)["processes"]) == 2
