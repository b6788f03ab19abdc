"""Two processes do what one does with twice the batch."""

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_modules.trec import read_run
from lit_rerank.metrics import Means, TrecMetrics, gather, means, per_query
from tests.test_metrics import queries
from tests.training import CONFIGS, command, figures, train_in, write_data

COMMON = ("--trainer.precision=32-true", "--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2")
PAIR = ("--trainer.devices=2", "--trainer.strategy=ddp")
METRICS = ("nDCG@10", "AP(rel=2)")


def arguments(folder: Path, model: Path, task: str, pair: bool) -> list[str]:
    """Two epochs of 3 steps, of 4, 4 and (of 10 windows) 2 windows."""
    name = f"{task}-{'two' if pair else 'one'}"
    own = [*COMMON, f"--data.init_args.batch_size={1 if pair else 2}", *(PAIR if pair else ())]
    if task in ("sft", "replay"):
        own.append("--model.init_args.optimizer.lr=0.001")
    if task == "replay":  # 6 conversations, of 16 examples
        own += [f"--config={CONFIGS / 'data' / 'replay.yaml'}", "--data.init_args.replay_share=0.375"]
        own.append("--model.init_args.replay_weight=0.5")
    if task != "dpo":
        return command("sft", "lora", "permutations", name, *own, model=model)
    start = f"--model.init_args.backbone.adapter={folder}/sft-one/adapter"
    return command("dpo", "lora", "preferences", name, *own, start, model=model)


def predict(folder: Path, model: Path, pair: bool) -> list[str]:
    name = f"predict-{'two' if pair else 'one'}"
    start = f"--model.init_args.backbone.adapter={folder}/sft-one/adapter"
    return command("sft", "lora", "permutations", name, start, *(PAIR if pair else ()), model=model, stage="predict")


def work(rank: int, port: int, folder: Path, model: Path) -> None:
    """One of the two processes."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {"metrics": measured(rank), "means": weighed(rank), "gathered": gather(rank)}
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    for args in (
        arguments(folder, model, "sft", True),
        arguments(folder, model, "replay", True),
        arguments(folder, model, "dpo", True),
        predict(folder, model, True),
    ):
        train_in(folder, args)
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


def weighed(rank: int) -> dict[str, tuple[float, int]]:
    figures = Means()
    figures.add("both", float(rank), 1 + 2 * rank)
    figures.add(f"only-{rank}", 1.0, 1)
    return figures.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Runs of one process and of two, and what the two say of metrics."""
    folder = write_data(tmp_path_factory.mktemp("ddp"), train=10, val=2, candidates=5)
    train_in(folder, arguments(folder, tiny_model, "sft", False))
    train_in(folder, arguments(folder, tiny_model, "replay", False))
    train_in(folder, arguments(folder, tiny_model, "dpo", False))
    train_in(folder, predict(folder, tiny_model, False))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, tiny_model), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("task", ["sft", "replay", "dpo"])
def test_parameters_are_those_of_one_process_with_twice_the_batch(folder: Path, task: str) -> None:
    one, two = (
        load_file(folder / f"{task}-{n}/checkpoints/last/adapter/adapter_model.safetensors") for n in ("one", "two")
    )
    start = load_file(folder / "sft-one/adapter/adapter_model.safetensors") if task == "dpo" else {}
    assert set(one) == set(two)
    for name, value in one.items():  # to a hundredth of SFT's learning rate: Adam enlarges float32's small differences
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    moved = max(float((v - start.get(n, torch.zeros(()))).abs().max()) for n, v in one.items() if "lora_B" in n)
    assert moved > (5e-5 if task == "dpo" else 1e-3)


@pytest.mark.parametrize("task", ["sft", "replay", "dpo"])
def test_figures_are_those_of_one_process_with_twice_the_batch(folder: Path, task: str) -> None:
    one, two = figures(folder / f"{task}-one"), figures(folder / f"{task}-two")
    assert len(one) == (8 if task == "replay" else 6)
    for step, row in one.items():
        for name in [name for name in row if name == "train/tokens_per_s" or (step == 1 and "accuracy" in name)]:
            del row[name], two[step][name]  # in DPO's first step rewards are 0, but for rounding
        assert two[step] == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert "val/nDCG@10" in one[4 if task == "replay" else 3]
    assert any("train/replay_loss" in row for row in one.values()) == (task == "replay")
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


def test_predictions_hold_each_query_once(folder: Path) -> None:
    lines = (folder / "predict-two" / "run.txt").read_text().splitlines()
    assert Counter(line.split()[0] for line in lines) == dict.fromkeys((f"c{i}" for i in range(5)), 4)
    assert read_run(folder / "predict-two" / "run.txt") == read_run(folder / "predict-one" / "run.txt")


def test_files_are_written_once(folder: Path) -> None:
    def names(run: str) -> Counter[str]:
        files = (file.relative_to(folder / run) for file in (folder / run).rglob("*") if file.is_file())
        return Counter("events" if "tfevents" in file.name else str(file) for file in files)

    assert names("sft-one") == names("sft-two")
    one, two = ((folder / run / "metrics.jsonl").read_text().splitlines() for run in ("sft-one", "sft-two"))
    assert len(one) == len(two)
    assert len(torch.load(folder / "sft-two/checkpoints/last.ckpt", weights_only=True)["processes"]) == 2
