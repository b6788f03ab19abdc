"""Progress: bars with the time left in a terminal, few plain lines in a log."""

import io
import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.progress import ProgressLines, RunProgressBar, progress
from tests.training import bare_trainer, command, train_in, write_data

LINE = re.compile(r"^epoch \d+, step \d+/\d+, \d:\d\d:\d\d elapsed, \d:\d\d:\d\d left", re.MULTILINE)


CALLBACK = ("--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/loss")


@pytest.mark.parametrize("callbacks", [(), CALLBACK], ids=["none of the user's", "one of the user's"])
def test_a_log_gets_lines_and_no_bar(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], callbacks: tuple[str, ...]
) -> None:
    write_data(tmp_path)
    args = command("sft", "lora", "permutations", "run", "--trainer.max_epochs=2", *callbacks, model=tiny_model)
    args.remove("--trainer.enable_progress_bar=false")
    train_in(tmp_path, args)
    said = capsys.readouterr().out
    assert LINE.search(said)
    assert "validated, epoch 2, step 4/4" in said
    assert "val/nDCG@10" in said
    assert "━━" not in said


@pytest.mark.parametrize(("every", "lines"), [(0.0, 64), (3600.0, 2)])
def test_lines_come_at_the_pace_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: float, lines: int
) -> None:
    trainer = bare_trainer(tmp_path, ProgressLines(every), max_epochs=1, limit_val_batches=0)
    trainer.fit(BoringModel())
    assert len(LINE.findall(capsys.readouterr().out)) == lines  # always the first step and the last


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_with_the_time_left_of_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "160")
    bar = progress()
    assert isinstance(bar, RunProgressBar)
    bare_trainer(tmp_path, bar, max_epochs=2, accumulate_grad_batches=4).fit(BoringModel())
    assert re.search(r"Run \(steps\).*32/32.*\d:\d\d:\d\d • \d:\d\d:\d\d", shown.getvalue())
    assert "Epoch 1/1" in shown.getvalue()


def test_other_processes_than_the_first_show_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    bar = RunProgressBar()
    trainer = bare_trainer(tmp_path, bar, max_steps=2, limit_val_batches=0)
    bar.disable()
    trainer.fit(BoringModel())
    assert trainer.global_step == 2
    assert "Run (steps)" not in shown.getvalue()


@pytest.mark.parametrize(("every", "lines"), [(0.0, 5), (3600.0, 1)])
def test_measuring_says_how_far_it_is(capsys: pytest.CaptureFixture[str], every: float, lines: int) -> None:
    with progress_bar("windows", 8, every) as advance:
        for _ in range(4):
            advance(2)
    said = capsys.readouterr().out
    assert len(re.findall(r"^windows \d/8, \d:\d\d:\d\d elapsed, \d:\d\d:\d\d left$", said, re.MULTILINE)) == lines
    assert said.splitlines()[-1].startswith("windows 8/8, ")
    assert "━━" not in said


def test_measuring_shows_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress_bar("windows", 8) as advance:
        advance(8)
    assert re.search("windows.*━━.*8/8", terminal.getvalue())
