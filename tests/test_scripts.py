"""The scripts behind `make quickstart` and `make train-pydocs`, all but the hours that they train for."""

import json
from pathlib import Path

import pytest
import torch

from data_modules.records import Window
from data_modules.sources import JudgedSource, SearchedSource
from data_modules.trec import read_run
from lit_rerank.errors import UserError
from lit_rerank.evaluation.rerank import in_first_stage_order
from scripts import quickstart, recipes
from tests.references import save_adapter


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would train; those with torch.compile fail."""
    calls: list[list[str]] = []

    class Done:
        def __init__(self, words: list[str], **_: object) -> None:
            calls.append(words[1:])
            self.returncode = int(any("compile" in word for word in words))

    monkeypatch.setattr(recipes.subprocess, "run", Done)
    return calls


@pytest.mark.parametrize("recipe", ["pydocs.pointing", "pydocs.sft", "pydocs.dpo", "pydocs.hours", "trecdl.dpo"])
def test_a_recipes_own_command_runs_in_the_folder(recipe: str) -> None:
    family, _, stage = recipe.partition(".")
    words = recipes.command(recipe, Path("runs/here"))
    assert words[:2] == ["train.py", "fit"]
    assert words[words.index("--trainer.default_root_dir") + 1] == f"runs/here/{stage}"
    assert not [word for word in words if word.startswith(f"runs/{family}.")]


def test_an_option_can_be_left_out() -> None:
    option = "--model.init_args.backbone.adapter"
    own, without = (recipes.command("pydocs.hours", Path("runs/here"), left_out) for left_out in (None, option))
    place = own.index(option)
    assert without == own[:place] + own[place + 2 :]


def test_a_failed_training_is_one_message(calls: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the training of pydocs\.sft has failed"):
        recipes.train("pydocs.sft", tmp_path, "--model.init_args.backbone.compile=true")


def test_a_stage_that_cannot_be_compiled_is_trained_without(calls: list[list[str]]) -> None:
    assert not quickstart.trained("sft", compiles=True)
    assert [any("compile" in word for word in words) for words in calls] == [True, False]
    assert not quickstart.trained("dpo", compiles=False)
    assert len(calls) == 3


@pytest.mark.parametrize("capabilities", [{}, {"amx_bf16": False}, {"amx_bf16": True}])
def test_compiling_is_for_processors_with_tiles(capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(recipes.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert recipes.pays_to_compile() == capabilities.get("amx_bf16", False)


def test_what_is_complete_is_kept_and_what_was_stopped_continues(calls: list[list[str]], tmp_path: Path) -> None:
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    (tmp_path / "new").mkdir()  # as the training would
    last.parent.mkdir(parents=True)
    last.touch()
    (tmp_path / "stopped" / "adapter").mkdir()  # written with the first validation
    recipes.go_on("pydocs.hours", tmp_path / "new")
    recipes.go_on("pydocs.hours", tmp_path / "stopped")
    assert not [word for word in calls[0] if word.startswith("--ckpt_path")]
    assert calls[1][-1] == "--ckpt_path=last"
    recipes.go_on("pydocs.hours", tmp_path / "stopped")
    assert len(calls) == 2


def test_what_has_failed_is_not_complete(calls: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"the training of pydocs\.hours has failed"):
            recipes.go_on("pydocs.hours", tmp_path, "--model.init_args.backbone.compile=true")
    assert len(calls) == 2


def test_an_earlier_run_is_removed_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    recipes.start_anew(run)
    assert not capsys.readouterr().out
    run.mkdir()
    recipes.start_anew(run)
    assert not run.exists()
    assert "holds an earlier run: it is removed" in capsys.readouterr().out


def test_an_adapter_is_evaluated_on_pydocs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "RUNS", tmp_path)
    monkeypatch.setattr(quickstart, "MODEL", str(tiny_model))
    records = list(SearchedSource("pydocs/test", depth=quickstart.SLIDING.depth))[:2]
    windows = [Window.of(record, range(len(record.passages))) for record in JudgedSource("pydocs/val", 2, 5, 5)]
    adapter = save_adapter(tiny_model, tmp_path / "adapter", seed=1)
    found = quickstart.evaluate("shipped", adapter, records, windows)
    assert {*read_run(tmp_path / "shipped.run.txt")} == {record.qid for record in records}
    assert found["no_skill"] > 0
    assert 0 <= found["nDCG@10"] <= 1
    assert found["nDCG@10_interval"][0] <= found["nDCG@10"] <= found["nDCG@10_interval"][1]
    first = quickstart.ranking_figures("first", in_first_stage_order(records), records)
    quickstart.show({"first_stage": first, "shipped": found}, 60)
    assert "shipped" in capsys.readouterr().out


def test_the_curves_are_drawn_from_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "RUNS", tmp_path)
    rows = [
        {"step": 0, "train/choice_loss": 0.7, "train/no_skill": 0.69},
        {"step": 1, "val/choice_loss": 0.6},
        {"step": 1, "train/rewards/accuracy": 0.5},
    ]
    for stage in quickstart.STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recipes.curve(tmp_path / "sft", "train/choice_loss") == [(0, 0.7)]
    quickstart.draw_curves(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
