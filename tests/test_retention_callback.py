"""RetentionCallback through train.py: what it logs and does, and that training goes on as if it were not there."""

import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, set_seed

from lit_rerank.backbone import BackboneSettings, load_for_inference, load_tokenizer, trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.general_text import open_documents
from lit_rerank.questions import open_questions
from lit_rerank.retention import measure
from lit_rerank.retention_callback import MaxDrop, RetentionCallback
from lit_rerank.sft import SFTModule
from tests.training import Crash, command, figures, train_in, write_data

QUESTIONS, DOCUMENTS = 16, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("retention"), train=8, val=2, candidates=1)


def watched(**settings: Any) -> list[str]:
    """The callback, on few questions, with allowances that nothing is beyond."""
    generous = {"acc_cloze": 9.0, "answer_logprob": 99.0, "bits_per_byte": 99.0}
    init = {"limit": QUESTIONS, "text_limit": DOCUMENTS, "max_drop": generous} | settings
    return ["--trainer.callbacks+", json.dumps({"class_path": "lit_rerank.RetentionCallback", "init_args": init})]


def run(folder: Path, model: Path, name: str, *more: str, backbone: str = "lora", lr: float = 0.01) -> Path:
    rate = f"--model.init_args.optimizer.lr={lr}"
    every = ("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--data.init_args.batch_size=2")
    train_in(folder, command("sft", backbone, "permutations", name, rate, *every, *more, model=model))
    return folder / name


def measured(model: Path, adapter: Path | None = None) -> dict[str, Any]:
    questions, _ = open_questions("shipped", limit=QUESTIONS)
    loaded = load_for_inference(str(model), None if adapter is None else str(adapter))
    return measure(loaded, load_tokenizer(str(model)), questions, open_documents("shipped", DOCUMENTS)).figures()


def test_training_is_not_disturbed_and_figures_are_logged(folder: Path, tiny_model: Path) -> None:
    exact = "--trainer.precision=32-true"
    dropout = "--model.init_args.backbone.lora.dropout=0.2"  # draws random numbers at every step
    plain = run(folder, tiny_model, "plain", exact, dropout)
    seen = run(folder, tiny_model, "seen", exact, dropout, *watched())
    for step, row in figures(plain).items():
        for name, value in row.items():
            if "tokens_per_s" not in name:
                assert figures(seen)[step][name] == value, (step, name)
    adapters = [load_file(r / "checkpoints/last/adapter/adapter_model.safetensors") for r in (plain, seen)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    rows = [json.loads(line) for line in (seen / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "retention/acc_cloze" in row]
    assert [row["step"] for row in found] == [0, 1, 3]
    start, end = measured(tiny_model), measured(tiny_model, seen / "checkpoints/last/adapter")
    for name in ("acc", "acc_cloze", "answer_logprob", "answer_margin", "bits_per_byte"):
        assert found[0][f"retention/{name}"] == pytest.approx(start[name], abs=1e-5)
        assert found[2][f"retention/{name}"] == pytest.approx(end[name], abs=1e-5)
        change = found[2][f"retention/{name}.change"]
        assert change == pytest.approx(end[name] - start[name], abs=1e-5)
        assert found[2][f"retention/{name}.low"] <= change <= found[2][f"retention/{name}.high"]
    assert found[2]["retention/bits_per_byte.change"] != 0
    assert found[2]["retention/dropped"] == 0


def test_it_measures_after_every_so_many_validations(folder: Path, tiny_model: Path) -> None:
    seen = run(folder, tiny_model, "every", *watched(every=2, text=None))
    rows = [json.loads(line) for line in (seen / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "retention/acc_cloze" in row] == [0, 3]
    assert not any("bits_per_byte" in name for row in rows for name in row)


@pytest.fixture(scope="module")
def skilled_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model when it has learned the documents by heart: it has something to lose."""
    set_seed(0)
    model, tokenizer = LlamaForCausalLM.from_pretrained(tiny_model), load_tokenizer(str(tiny_model))
    ids = [tokenizer(document.text, return_tensors="pt").input_ids for document in open_documents("shipped", DOCUMENTS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(100):
        text = ids[step % len(ids)]
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("skilled")
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    assert measured(folder)["bits_per_byte"] < 4
    return folder


STRICT = {"acc_cloze": None, "answer_logprob": None, "bits_per_byte": 0.0}


@pytest.mark.parametrize("backbone", ["lora", "full"])
def test_a_drop_restores_what_was_best_before_it(folder: Path, skilled_model: Path, backbone: str) -> None:
    name = f"restored-{backbone}"
    strict = watched(max_drop=STRICT, on_drop="restore")
    with pytest.warns(UserWarning, match="general ability has dropped, bits_per_byte .*earlier weights are restored"):
        seen = run(folder, skilled_model, name, *strict, backbone=backbone, lr=3.0)
    assert max(figures(seen)) == 2  # two steps, a validation, the end
    kept = seen / ("adapter" if backbone == "lora" else "model")
    if backbone == "lora":
        weights = load_file(kept / "adapter_model.safetensors")
        assert all(not value.any() for key, value in weights.items() if "lora_B" in key)  # where training started
        moved = load_file(seen / "checkpoints/last/adapter/adapter_model.safetensors")
        assert any(value.any() for key, value in moved.items() if "lora_B" in key)
    else:
        assert measured(kept) == measured(skilled_model)
        assert measured(seen / "checkpoints/last/model") != measured(skilled_model)


class Scripted(L.Callback):
    """A score for each validation, the weights that it was of in `{folder}`, and a wreck before the last."""

    def __init__(self, scores: list[float], folder: str) -> None:
        self.scores, self.folder, self.seen = scores, Path(folder), 0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        weights = trainable_parameters(module)
        torch.save({name: weight.detach().clone() for name, weight in weights.items()}, self.folder / f"{self.seen}.pt")
        if self.seen == len(self.scores) - 1:
            with torch.no_grad():
                for weight in weights.values():
                    weight.add_(1.0)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            module.log("val/scripted", self.scores[self.seen])
            self.seen += 1


@pytest.mark.parametrize(("mode", "best"), [("max", 1), ("min", 0)])
def test_the_best_of_those_without_a_drop_is_restored(
    folder: Path, skilled_model: Path, tmp_path: Path, mode: str, best: int
) -> None:
    scripted = {"scores": [0.5, 0.9, 0.7, 1.0], "folder": str(tmp_path)}
    script = {"class_path": f"{Scripted.__module__}.Scripted", "init_args": scripted}
    allowed = {"acc_cloze": None, "answer_logprob": None, "bits_per_byte": 0.5}
    words = ["--trainer.callbacks+", json.dumps(script), *watched(max_drop=allowed, on_drop="restore")]
    words += ["--checkpoint.monitor=val/scripted", f"--checkpoint.mode={mode}", "--trainer.max_steps=8"]
    with pytest.warns(UserWarning, match="step 8: general ability has dropped"):
        seen = run(folder, skilled_model, f"best-{mode}", *words, lr=1e-3)
    weights = [torch.load(tmp_path / f"{number}.pt") for number in range(4)]
    assert len({float(sum(w.sum() for w in of.values())) for of in weights}) == 4
    kept = load_file(seen / "adapter" / "adapter_model.safetensors")
    expected = weights[best]
    assert len(kept) == len(expected)
    for name, value in expected.items():
        (found,) = (weight for key, weight in kept.items() if key == re.sub(r"^model\.|\.default", "", name))
        assert torch.equal(found, value), name


def test_a_run_that_is_told_to_restore_when_it_is_resumed_keeps_what_it_found(
    folder: Path, skilled_model: Path, tmp_path: Path
) -> None:
    run(folder, skilled_model, "told", *watched(), "--trainer.max_steps=2", lr=1e-6)
    allowed = {"acc_cloze": None, "answer_logprob": None, "bits_per_byte": 0.5}
    wreck = {
        "class_path": f"{Scripted.__module__}.Scripted",
        "init_args": {"scores": [0.5], "folder": str(tmp_path)},
    }
    words = [*watched(max_drop=allowed, on_drop="restore"), "--trainer.callbacks+", json.dumps(wreck)]
    before = load_file(folder / "told/checkpoints/last/adapter/adapter_model.safetensors")
    with pytest.warns(UserWarning, match="step 4: general ability has dropped.* earlier weights are restored"):
        seen = run(folder, skilled_model, "told", *words, "--ckpt_path=told/checkpoints/last.ckpt", lr=1e-6)
    after = load_file(seen / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_had_dropped_before_a_run_is_resumed_is_not_restored(folder: Path, skilled_model: Path) -> None:
    latest = "--checkpoint.monitor=null"  # becomes the adapter, whatever scores best
    run(folder, skilled_model, "late", *watched(), latest, "--trainer.max_steps=2", lr=3.0)
    strict = [*watched(max_drop=STRICT, on_drop="restore"), latest]
    before = load_file(folder / "late/checkpoints/last/adapter/adapter_model.safetensors")
    with pytest.warns(UserWarning, match="general ability has dropped") as warned:
        seen = run(folder, skilled_model, "late", *strict, "--ckpt_path=late/checkpoints/last.ckpt", lr=3.0)
    said = [str(warning.message) for warning in warned if "has dropped" in str(warning.message)]
    assert [words.partition(":")[0] for words in said] == ["resumed at step 2", "step 4"]
    assert not any("restored" in words for words in said)
    after = load_file(seen / "adapter" / "adapter_model.safetensors")
    assert not all(torch.equal(after[name], value) for name, value in before.items())


def test_a_drop_stops_or_warns(folder: Path, skilled_model: Path) -> None:
    for act, steps in (("stop", 2), ("warn", 4)):
        with pytest.warns(UserWarning, match=r"step 2: general ability has dropped, bits_per_byte \d"):
            seen = run(folder, skilled_model, act, *watched(max_drop=STRICT, on_drop=act), lr=3.0)
        assert max(figures(seen)) == steps
        assert figures(seen)[2]["retention/dropped"] == 1
        weights = load_file(seen / "adapter" / "adapter_model.safetensors")
        assert any(value.any() for key, value in weights.items() if "lora_B" in key)


def test_where_the_start_is_no_better_than_chance_nothing_is_judged(folder: Path, tiny_model: Path) -> None:
    assert measured(tiny_model)["bits_per_byte"] > 7.5
    with pytest.warns(UserWarning, match="acc, bits_per_byte: the model starts no better than chance"):
        seen = run(folder, tiny_model, "chance", *watched(max_drop=STRICT | {"acc": 0.0}, on_drop="stop"), lr=3.0)
    assert max(figures(seen)) == 4


def test_a_resumed_run_compares_with_the_first_start(folder: Path, tiny_model: Path) -> None:
    whole = run(folder, tiny_model, "whole", *watched())
    crash = json.dumps({"class_path": f"{Crash.__module__}.Crash", "init_args": {"at": 2}})
    with pytest.raises(RuntimeError, match="power cut"):
        run(folder, tiny_model, "resumed", *watched(), "--trainer.callbacks+", crash)
    resumed = run(folder, tiny_model, "resumed", *watched(), "--ckpt_path=resumed/checkpoints/last.ckpt")
    for step in (2, 4):
        for name, value in figures(whole)[step].items():
            if name.startswith("retention/"):
                assert figures(resumed)[step][name] == pytest.approx(value, abs=1e-6), (step, name)
    others = watched(limit=QUESTIONS - 1)
    with pytest.raises(SystemExit, match="watched otherwise: the two measurements are of different questions"):
        run(folder, tiny_model, "resumed", *others, "--ckpt_path=resumed/checkpoints/last-previous.ckpt")


def work(rank: int, port: int, folder: Path, model: Path) -> None:
    """One of two processes."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pair = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=1")
    run(folder, model, "pair", *watched(max_drop=STRICT, on_drop="restore"), *pair, lr=3.0)
    dist.destroy_process_group()


def test_two_processes_stop_and_restore_together(folder: Path, skilled_model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, skilled_model), nprocs=2)  # type: ignore[no-untyped-call]
    found = figures(folder / "pair")
    assert max(found) == 2
    assert found[2]["retention/dropped"] == 1
    assert found[1]["retention/bits_per_byte"] == pytest.approx(measured(skilled_model)["bits_per_byte"], rel=1e-2)
    weights = load_file(folder / "pair" / "adapter" / "adapter_model.safetensors")
    assert all(not value.any() for key, value in weights.items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"questions": "none.jsonl"}, "none.jsonl does not exist"),
        ({"fewshot": 2}, "the shipped questions are the examples"),
        ({"max_drop": {"acc_cloze": -1.0}}, "max_drop.acc_cloze is -1.0"),
    ],
)
def test_wrong_settings_are_refused(folder: Path, tiny_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run(folder, tiny_model, "refused", *watched(**settings))


def test_a_run_without_validation_is_refused(folder: Path, tiny_model: Path) -> None:
    without = ["--data.init_args.val=null", "--data.init_args.candidates=null", "--trainer.val_check_interval=null"]
    with pytest.raises(SystemExit, match="measures after validations, and there are none"):
        run(folder, tiny_model, "blind", *without, *watched())


class Stage:
    """What the callback asks of a trainer of two processes whose `min_steps` are not reached."""

    state, sanity_checking = SimpleNamespace(fn=TrainerFn.FITTING), False
    is_global_zero, world_size, enable_validation, should_stop = True, 2, True, False
    strategy = SimpleNamespace(broadcast=lambda said: said)
    checkpoint_callback = SimpleNamespace(monitor="val/score", mode="min")
    fit_loop = SimpleNamespace(_can_stop_early=False)
    loggers = ()

    def __init__(self, folder: Path) -> None:
        self.default_root_dir, self.global_step, self.callback_metrics = str(folder), 0, {}

    def at(self, step: int, score: float) -> Any:
        self.global_step, self.callback_metrics = step, {"val/score": torch.tensor(score)}
        return self


def restoring() -> RetentionCallback:
    return RetentionCallback(limit=1, text=None, on_drop="restore")


def test_a_score_that_is_no_number_is_the_worst(tmp_path: Path) -> None:
    stage, module, callback = Stage(tmp_path), torch.nn.Linear(1, 1), restoring()
    kept = []
    for step, score in enumerate([0.9, float("nan"), 0.5, 0.7, -float("inf")]):
        callback._keep_if_best(stage.at(step, score), module)
        kept.append(callback.kept_step)
    assert kept == [0, 0, 2, 2, 2]
    first = restoring()
    first._keep_if_best(stage.at(0, float("nan")), module)
    first._keep_if_best(stage.at(1, 9.0), module)
    assert first.kept_step == 1


def test_weights_of_another_branch_or_damaged_are_not_what_was_kept(tmp_path: Path) -> None:
    stage, module, callback = Stage(tmp_path), torch.nn.Linear(1, 1), restoring()
    callback._keep_if_best(stage.at(2, 0.5), module)
    earlier = callback.state_dict()
    callback._keep_if_best(stage.at(4, 0.4), module)
    resumed, branch = restoring(), restoring()
    resumed.load_state_dict(callback.state_dict())
    branch.load_state_dict(earlier)
    assert resumed._finds_kept(stage)
    assert not branch._finds_kept(stage)
    assert not restoring()._finds_kept(stage)  # a new run in an old folder
    path = callback._path(stage)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="retained.pt is damaged"):
        assert not resumed._finds_kept(stage)


def test_where_training_may_not_stop_yet_the_last_measurement_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, module, callback = Stage(tmp_path), torch.nn.Linear(1, 1), restoring()
    callback.differences = {"bits_per_byte": {"before": 1.0, "after": 2.0, "low": 0.9, "high": 1.1}}
    found = iter([["bits_per_byte"], []])
    monkeypatch.setattr(callback, "_compare", lambda *_: next(found))
    callback._keep(stage.at(0, 0.5), module, None)
    with pytest.warns(UserWarning, match="stops when min_steps and min_epochs are reached, .* if the last measurement"):
        callback.on_validation_end(stage.at(2, 0.5), module)
    assert stage.should_stop
    callback.on_validation_end(stage.at(4, 0.4), module)
    with torch.no_grad():
        module.weight.fill_(7.0)
    callback.on_train_end(stage, module)
    assert module.weight == 7


def test_a_model_in_pieces_is_refused_and_long_waits_are_announced(tmp_path: Path) -> None:
    module, callback = SFTModule(BackboneSettings("any/model")), restoring()
    module.model = torch.nn.Linear(1, 1)
    callback.from_hub = True
    with pytest.warns(UserWarning, match="14,042 questions while the others wait"):
        callback._check(Stage(tmp_path), module)
    module.model.weight.ds_id = 0  # as DeepSpeed has it
    with pytest.raises(UserError, match=r"cannot watch a model in pieces \(FSDP, ZeRO 3\)"):
        callback.on_train_start(Stage(tmp_path), module)


def test_what_is_allowed_has_names() -> None:
    with pytest.raises(UserError, match=r"max_drop\.acc is nan"):
        MaxDrop(acc=float("nan"))
    assert MaxDrop(acc_cloze=None, acc=0.1).named == {"acc": 0.1, "answer_logprob": 0.1, "bits_per_byte": 0.1}
