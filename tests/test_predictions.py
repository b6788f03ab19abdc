"""predict goes on where it was stopped, and only where nothing has changed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
from transformers import AutoTokenizer

from data_modules.records import RankingRecord
from data_modules.trec import read_run
from lit_rerank.errors import UserError
from lit_rerank.modules import RerankModule
from lit_rerank.predictions import of_first
from tests.references import save_adapter
from tests.tiny import record
from tests.training import command, train_in, write_candidates, write_data

ROOT = Path(__file__).resolve().parents[1]
LISTS = 5


class Stop(L.Callback):
    """Ends predict when it has ranked so many batches, as a power cut would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_predict_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, number: int) -> None:
        if number == self.after:
            raise RuntimeError("power cut")

    def on_predict_end(self, *args: Any) -> None:
        raise RuntimeError("power cut")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path, candidates=LISTS)


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lists that the model has ranked since this was last cleared."""
    qids: list[str] = []
    rerank = RerankModule.rerank

    def spied(self: RerankModule[Any], records: Sequence[RankingRecord]) -> Any:
        qids.extend(r.qid for r in records)
        return rerank(self, records)

    monkeypatch.setattr(RerankModule, "rerank", spied)
    return qids


def predict(folder: Path, model: Path, run: str, *more: str) -> dict[str, list[tuple[str, float]]]:
    args = ("--data.init_args.val_batch_size=1", "--trainer.precision=32-true", *more)
    train_in(folder, command("sft", "lora", "permutations", run, *args, model=model, stage="predict"))
    return read_run(folder / run / "run.txt")


def stopped(folder: Path, model: Path, run: str, after: int, *more: str) -> Path:
    """The parts that a run leaves which was stopped."""
    stop = (f"--trainer.callbacks+={Stop.__module__}.{Stop.__name__}", f"--trainer.callbacks.after={after}")
    with pytest.raises(RuntimeError, match="power cut"):
        predict(folder, model, run, *stop, *more)
    assert not (folder / run / "run.txt").exists()
    return folder / run / "run.parts"


def qids(*numbers: int) -> list[str]:
    return [f"c{number}" for number in numbers]


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(folder: Path, tiny_model: Path, ranked: list[str]) -> None:
    whole = predict(folder, tiny_model, "whole")
    assert ranked == qids(0, 1, 2, 3, 4)
    assert not (folder / "whole" / "run.parts").exists()
    ranked.clear()
    parts = stopped(folder, tiny_model, "run", 2)
    stopped(folder, tiny_model, "run", 1)
    assert ranked == qids(0, 1, 2)
    with (parts / "00000.jsonl").open("a") as file:
        file.write('{"qid": "c3", "key"')  # it was stopped within a line
    with (parts / "00007.jsonl").open("w") as file:
        file.write('{"qid": "c4')  # and so was one of the processes that there are no more
    ranked.clear()
    assert predict(folder, tiny_model, "run") == whole
    assert ranked == qids(3, 4)
    assert (folder / "run" / "run.txt").read_text() == (folder / "whole" / "run.txt").read_text()
    assert not parts.exists()


def test_a_run_that_was_stopped_when_all_was_ranked(folder: Path, tiny_model: Path, ranked: list[str]) -> None:
    parts = stopped(folder, tiny_model, "run", LISTS)
    assert ranked == qids(0, 1, 2, 3, 4)
    (parts / "00001.jsonl").write_text('{"qid": "c9", "key": "k", "run": [["d", 1.0]]}\n')  # of a list that was removed
    ranked.clear()
    run = predict(folder, tiny_model, "run")
    assert len(ranked) == 1  # of a loop without batches nobody would learn the end
    assert run == predict(folder, tiny_model, "whole")


def test_a_part_of_the_lists_makes_a_part_of_the_run(folder: Path, tiny_model: Path, ranked: list[str]) -> None:
    assert list(predict(folder, tiny_model, "run", "--trainer.limit_predict_batches=2")) == qids(0, 1)
    assert list(predict(folder, tiny_model, "run", "--trainer.limit_predict_batches=1")) == qids(0, 1, 2)
    assert list(predict(folder, tiny_model, "run")) == qids(0, 1, 2, 3, 4)
    assert ranked == qids(0, 1, 2, 3, 4)
    assert list(predict(folder, tiny_model, "run", "--trainer.limit_predict_batches=1")) == qids(0)  # begun anew


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (["--model.init_args.backbone.adapter=other"], (0, 1, 2, 3, 4)),
        (["--model.init_args.backbone.lora.alpha=64"], (0, 1, 2, 3, 4)),
        (["--model.init_args.prompt.max_passage_tokens=3"], (0, 1, 2, 3, 4)),
        (["--model.init_args.reranking.window=3", "--model.init_args.reranking.stride=2"], (0, 1, 2, 3, 4)),
        (["--model.init_args.reranking.rounds=2"], (0, 1, 2, 3, 4)),
        (["--model.init_args.reranking.max_batch_tokens=500", "--data.init_args.val_batch_size=2"], (3, 4)),
        (["a passage"], (1, 3, 4)),
        (["a query"], (1, 3, 4)),
    ],
    ids=lambda change: change[0].rpartition(".")[2] if isinstance(change, list) else "",
)
def test_what_has_changed_is_ranked_again(
    folder: Path, tiny_model: Path, ranked: list[str], change: list[str], again: tuple[int, ...]
) -> None:
    save_adapter(tiny_model, folder / "other", seed=2)
    stopped(folder, tiny_model, "run", 3)
    if not change[0].startswith("--"):
        lists = folder / "data" / "val.candidates.jsonl"
        old = "number 2 about fleas and c1" if change == ["a passage"] else "how long do fleas live, c1"
        assert old in lists.read_text()
        lists.write_text(lists.read_text().replace(old, "something else"))
        change = []
    ranked.clear()
    run = predict(folder, tiny_model, "run", *change)
    assert ranked == qids(*again)
    assert list(run) == qids(0, 1, 2, 3, 4)
    ranked.clear()
    assert predict(folder, tiny_model, "anew", *change) == run
    assert ranked == qids(0, 1, 2, 3, 4)


def test_what_more_processes_have_left_of_another_model_does_not_count(
    folder: Path, tiny_model: Path, ranked: list[str]
) -> None:
    save_adapter(tiny_model, folder / "other", seed=2)
    parts = stopped(folder, tiny_model, "run", 3)
    kept = (parts / "00000.jsonl").read_text().splitlines(keepends=True)
    for rank, lines in enumerate((kept[::2], kept[1::2])):
        (parts / f"{rank:05d}.jsonl").write_text("".join(lines))
    other = "--model.init_args.backbone.adapter=other"
    stopped(folder, tiny_model, "run", 4, other)
    ranked.clear()
    run = predict(folder, tiny_model, "run", other)
    assert ranked == qids(4)
    assert run == predict(folder, tiny_model, "anew", other)


def test_another_chat_template_ranks_again(folder: Path, tiny_model: Path, ranked: list[str]) -> None:
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    stopped(folder, model, "run", 3)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ 'Rank well. ' }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(model)
    ranked.clear()
    predict(folder, model, "run")
    assert ranked == qids(0, 1, 2, 3, 4)


def test_parts_that_are_none_are_named(folder: Path, tiny_model: Path) -> None:
    parts = stopped(folder, tiny_model, "run", 1)
    file = parts / "00000.jsonl"
    for line in (
        "no json",
        '{"qid": "c1"}',
        "[]",
        '{"qid": "c1", "key": "k", "run": [1]}',
        '{"qid": ["c1"], "key": "k", "run": []}',
        '{"qid": "c1", "key": {}, "run": []}',
    ):
        file.write_text(line + "\n")
        with pytest.raises(SystemExit, match=r"^error: .*00000\.jsonl:1: not a ranking that predict has kept"):
            predict(folder, tiny_model, "run")


def test_an_error_of_the_first_process_is_one_of_all() -> None:
    said: list[Any] = []

    def fail() -> None:
        raise UserError("a part is missing")

    def told(own: Any) -> Any:
        said.append(own)
        return said[0]

    for first in (True, False):
        trainer = cast(L.Trainer, SimpleNamespace(is_global_zero=first, strategy=SimpleNamespace(broadcast=told)))
        with pytest.raises(UserError, match="a part is missing"):
            of_first(trainer, fail)
    assert len(said) == 2


def test_a_killed_run_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    """By SIGKILL, while it ranks."""
    folder = write_data(tmp_path)
    lists = [record(f"c{i}", 20) for i in range(24)]
    write_candidates(lists, folder / "data" / "val.candidates.jsonl", folder / "data" / "val.qrels.txt")
    args = ("--data.init_args.val_batch_size=1", "--trainer.precision=32-true")
    words = command("sft", "lora", "permutations", "run", *args, model=tiny_model, stage="predict")
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    part = folder / "run" / "run.parts" / "00000.jsonl"
    until = time.monotonic() + 300
    while not part.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = part.read_bytes().count(b"\n")
    assert 0 < kept < len(lists)
    run = predict(folder, tiny_model, "run")
    assert list(run) == [r.qid for r in lists]
    assert all(sorted(d for d, _ in run[r.qid]) == sorted(p.docid for p in r.passages) for r in lists)
