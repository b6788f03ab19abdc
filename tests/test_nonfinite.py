"""A loss that is no number stops training, and what was read is written down: with accumulation, on two processes."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from data_modules.records import Passage, RankingRecord
from data_modules.sources import JsonlSource, MessagesSource, PairsSource
from data_modules.sources.own import write_jsonl
from tests.tiny import record
from tests.training import CONFIGS, command, figures, train_in, write_data

WHOLE = ("--data.init_args.augmentation.min_size=3", "--data.init_args.augmentation.max_size=3")
PLAIN = (*WHOLE, "--data.init_args.val=null", "--data.init_args.candidates=null", "--trainer.precision=32-true")


@pytest.fixture(scope="module")
def poisoned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers NaN to every text with an `@`."""
    folder = tmp_path_factory.mktemp("poisoned")
    model, tokenizer = LlamaForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    (token,) = tokenizer("@", add_special_tokens=False)["input_ids"]
    model.model.embed_tokens.weight.data[token] = torch.nan
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def poisonous(qid: str = "bad") -> RankingRecord:
    passages = (Passage("x", "This is @ poison."), Passage("y", "Harmless."), Passage("z", "Harmless, too."))
    return RankingRecord(qid, "what is harmless?", passages, (2, 3, 1), qrels={"y": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight windows of three passages, of which one is poisonous."""
    folder = write_data(tmp_path)
    write_jsonl([*(record(f"t{i}", 3) for i in range(7)), poisonous()], folder / "data" / "train.jsonl")
    return folder


def stopped(folder: Path, args: list[str]) -> str:
    """What train.py says when it stops: one line."""
    with pytest.raises(SystemExit) as error:
        train_in(folder, args)
    message = str(error.value.code)
    assert message.startswith("error: training stops at step ")
    assert "\n" not in message
    return message


def written(folder: Path, run: str, message: str) -> dict[str, Path]:
    """The files that a run has written, by their kind; its last words name each."""
    files = {file.name.split(".")[-2]: file for file in (folder / run / "nonfinite").iterdir()}
    assert all(str(file.relative_to(folder)) in message for file in files.values())
    return files


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_batch_is_written_and_can_be_read_again(folder: Path, poisoned: Path, accumulate: int) -> None:
    own = ["--data.init_args.batch_size=2", f"--trainer.accumulate_grad_batches={accumulate}", *PLAIN]
    own += ["--trainer.max_epochs=1", "--checkpoint.every_n_train_steps=1"]
    message = stopped(folder, command("sft", "lora", "permutations", "run", *own, model=poisoned))
    (file,) = written(folder, "run", message).values()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 2  # of an accumulation's batches only the one that did it
    assert {row["qid"]: row["loss"] for row in rows}["bad"] == "nan"
    again = {one.qid: one for one in JsonlSource(file)}["bad"]
    assert {p.text for p in again.passages} == {p.text for p in poisonous().passages}
    assert [again.passages[i - 1].docid for i in again.permutation or ()] == ["y", "z", "x"]
    assert again.qrels == {"x": 0, "y": 1, "z": 0}
    step = int(message.split("step ")[1].split(",")[0])
    done = figures(folder / "run") if step > 1 else {}
    assert [at for at, row in done.items() if "train/loss" in row] == list(range(1, step))
    if step > 1:  # and the weights are those of the step before
        weights = load_file(folder / "run/checkpoints/last/adapter/adapter_model.safetensors")
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_what_was_written_stops_training_again(folder: Path, poisoned: Path) -> None:
    own = ["--data.init_args.batch_size=2", *PLAIN, "--trainer.max_epochs=1"]
    file = next(
        iter(
            written(
                folder, "run", stopped(folder, command("sft", "lora", "permutations", "run", *own, model=poisoned))
            ).values()
        )
    )
    again = f"--data.init_args.train.init_args.path={file}"
    stopped(folder, command("sft", "lora", "permutations", "again", *own, again, model=poisoned))


def test_weights_that_blow_up(folder: Path, tiny_model: Path) -> None:
    own = [*PLAIN, "--trainer.max_epochs=9", "--model.init_args.optimizer.lr=1e30", "--trainer.gradient_clip_val=null"]
    own += ["--data.init_args.batch_size=8", "--trainer.accumulate_grad_batches=1"]
    message = stopped(folder, command("sft", "lora", "permutations", "run", *own, model=tiny_model))
    assert "or lower optimizer.lr" in message
    assert len(list(JsonlSource(written(folder, "run", message)["windows"]))) == 8


def test_preferences_and_conversations(folder: Path, poisoned: Path, tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "What is @?"}, {"role": "assistant", "content": "Poison."}]}
    (folder / "data" / "replay.jsonl").write_text(json.dumps(talk) + "\n")
    start = ["--data.init_args.batch_size=9", *PLAIN, "--trainer.max_epochs=1"]
    sft = command("sft", "lora", "permutations", "sft", "--trainer.max_steps=1", *start, model=poisoned)
    clean = folder / "data" / "clean.jsonl"
    write_jsonl([record("t", 3)], clean)
    train_in(folder, [*sft, f"--data.init_args.train.init_args.path={clean}"])
    more = [
        "--model.init_args.backbone.adapter=sft/adapter",
        "--data.init_args.negatives=all",
        f"--config={CONFIGS / 'data' / 'replay.yaml'}",
    ]
    message = stopped(folder, command("dpo", "lora", "preferences", "dpo", *start, *more, model=poisoned))
    files = written(folder, "dpo", message)
    assert "replay_loss nan" in message
    assert "bad" in {one.qid for one in JsonlSource(files["windows"])}
    assert [list(one.messages) for one in MessagesSource(files["conversations"])] == [talk["messages"]]

    pairs = tmp_path / "pairs.jsonl"
    pair = {"prompt": [{"role": "user", "content": "What is @?"}], "chosen": "Poison.", "rejected": "Cake."}
    pairs.write_text(json.dumps(pair) + "\n")
    ready = ["--data.init_args.train.class_path=data_modules.sources.PairsSource"]
    ready.append(f"--data.init_args.train.init_args.path={pairs}")
    message = stopped(folder, command("dpo", "lora", "preferences", "pairs", *start, more[0], *ready, model=poisoned))
    (read,) = PairsSource(written(folder, "pairs", message)["pairs"])
    assert "What is @?" in read.prompt
    assert (read.chosen.strip(), read.rejected.strip()) == ("Poison.", "Cake.")


def work(rank: int, port: int, folder: Path, args: list[str]) -> None:
    """One of two processes; what it says is written down."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    (folder / f"said-{rank}.txt").write_text(stopped(folder, args))
    dist.destroy_process_group()


def test_two_processes_stop_together(folder: Path, poisoned: Path) -> None:
    own: list[Any] = ["--data.init_args.batch_size=1", *PLAIN, "--trainer.max_epochs=1", "--trainer.devices=2"]
    own += ["--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = command("sft", "lora", "permutations", "run", *own, model=poisoned)
    torch.multiprocessing.spawn(work, (port, folder, args), nprocs=2)  # type: ignore[no-untyped-call]
    one, other = ((folder / f"said-{rank}.txt").read_text() for rank in (0, 1))
    assert one == other
    (file,) = written(folder, "run", one).values()  # of the two processes' batches only the one that did it
    assert [again.qid for again in JsonlSource(file)] == ["bad"]
