"""Each recipe's own command trains: on a tiny model and tiny data at the places that the recipe names."""

import gzip
import json
import shlex
from pathlib import Path

import pytest
import yaml

from data_modules.records import RankingRecord
from data_modules.sources.own import write_jsonl
from tests.tiny import record
from tests.training import CONFIGS, figures, train_in, write_candidates

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"), key=lambda path: (path.name.endswith("dpo.yaml"), path))
# What a CPU, a hub that is out of reach and a test's patience ask for; all else is the recipe's.
HERE = (
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.num_workers=0",
)
# What each kind of recipe needs besides: eight records make two steps.
FROM_THE_HUB = ("--trainer.accumulate_grad_batches=4", "--data.init_args.train.init_args.path=data/conversations.jsonl")
OTHERS = {
    "pydocs": ("--trainer.limit_val_batches=1", "--trainer.val_check_interval=2"),
    "trecdl": ("--trainer.limit_val_batches=1", "--trainer.val_check_interval=1"),
    "smollm2_real": ("--trainer.accumulate_grad_batches=1",),
}


def conversation(r: RankingRecord) -> dict[str, object]:
    """A record as RankZephyr's training data has it."""
    n = len(r.passages)
    lines = "\n".join(f"[{i}] {passage.text}" for i, passage in enumerate(r.passages, start=1))
    human = (
        f"I will provide you with {n} passages, each indicated by a numerical identifier []. Rank the passages based "
        f"on their relevance to the search query: {r.query}.\n\n{lines}\n\nSearch Query: {r.query}.\n\n"
        f"Rank the {n} passages above based on their relevance to the search query."
    )
    answer = " > ".join(f"[{i}]" for i in r.permutation or ())
    turns = [("system", "You rank."), ("human", human), ("gpt", answer)]
    return {"id": r.qid, "conversations": [{"from": who, "value": value} for who, value in turns]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "configs").symlink_to(CONFIGS)
    data = folder / "data"
    data.mkdir()
    records = [record(f"t{i}", 3 + i % 3) for i in range(8)]
    (data / "conversations.jsonl").write_text("".join(json.dumps(conversation(r)) + "\n" for r in records))
    windows = [
        {"qid": r.qid, "query": r.query, "docids": [p.docid for p in r.passages], "permutation": r.permutation}
        for r in records
    ]
    passages = [{"docid": p.docid, "text": p.text} for r in records for p in r.passages]
    for name, rows in {"dl19.teacher_windows": windows, "dl19.passages": passages}.items():
        with gzip.open(data / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (data / "trecdl").mkdir()
    for name in ("pointing", "pointing.val", "train", "lists", "orders"):
        write_jsonl(records * 4, data / "trecdl" / f"{name}.jsonl.gz")
    talk = [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "It is 4."}]
    (data / "trecdl" / "self_taught").mkdir()
    with gzip.open(data / "trecdl" / "self_taught" / "replay.jsonl.gz", "wt") as file:
        file.write(json.dumps({"messages": talk}) + "\n")
    write_candidates([record(f"c{i}", 4) for i in range(2)], data / "c.jsonl", data / "qrels.dl21.txt")
    (data / "dl21.bm25.top100.jsonl.gz").write_bytes(gzip.compress((data / "c.jsonl").read_bytes()))
    return folder


def run_recipe(folder: Path, model: Path, recipe: Path) -> Path:
    """Run the command that the recipe opens with; the run's folder."""
    words = shlex.split(recipe.read_text().splitlines()[0])[3:]
    run = folder / words[words.index("--trainer.default_root_dir") + 1]
    if (run / "metrics.jsonl").exists():
        return run
    overrides = list(HERE)
    start = next((word for word in words if word.startswith("runs/") and word.endswith(("/adapter", "/model"))), None)
    if start is not None:
        first = Path(start).parent.name
        run_recipe(folder, model, CONFIGS / "recipes" / f"{first}.yaml")
    if start is None or start.endswith("/adapter"):
        overrides.append(f"--model.init_args.backbone.model={model}")
    overrides += OTHERS.get(recipe.name.partition(".")[0], FROM_THE_HUB)
    train_in(folder, [*words, *overrides])
    return run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_trains(folder: Path, tiny_model: Path, recipe: Path) -> None:
    run = run_recipe(folder, tiny_model, recipe)
    steps = figures(run)
    assert list(steps) == [1, 2]
    assert all(row["train/loss"] >= 0 for row in steps.values())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    monitor = settings["checkpoint"]["monitor"]
    assert monitor is None or steps[2][monitor] >= 0
    left = run / ("model" if "_full." in recipe.name else "adapter")
    module, known = settings["model"]["init_args"], json.loads((left / "lit_rerank.json").read_text())
    assert known["format"] == module["prompt"]["format"]
    reranking = {"window": 20, **(module["reranking"] or {})}
    assert known["reading"]["window"] == reranking["window"]
    assert known["reading"]["stride"] == (reranking.get("stride") or reranking["window"] // 2)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.name.partition(".")[0] not in OTHERS], ids=lambda path: path.stem
)
def test_what_was_not_run_says_so(recipe: Path) -> None:
    assert "# Not run here: no GPU." in recipe.read_text()
