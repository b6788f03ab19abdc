"""`evaluate.py mmlu`: what it prints and writes, comparisons, lm-eval's own tasks, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from lit_rerank.backbone import load_model, load_tokenizer
from lit_rerank.cli import evaluate
from lit_rerank.errors import UserError
from lit_rerank.lm_eval_tasks import lm_eval_tasks
from lit_rerank.measurement import Retention
from lit_rerank.questions import shipped_questions, spread
from tests.asked import adapted, by_hand, logp

ROOT = Path(__file__).resolve().parent.parent


def test_the_command_prints_what_it_writes_and_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    """Through the script: the project's root, where `evaluate.py` hides the package `evaluate`, comes first then."""
    home = tmp_path / "home"
    home.mkdir()
    before = {path for path in ROOT.iterdir() if path.name != "__pycache__"}
    metrics = tmp_path / "out" / "mmlu.json"
    files = ["--model", str(tiny_model), "--metrics", str(metrics)]
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", "mmlu", *files, "--limit", "12", "--batch_size", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("HF_HOME", "HF_DATASETS_CACHE")} | {"HOME": str(home)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(metrics.read_text())
    forms = [f"{form}{figure}" for form in ("acc", "acc_cloze") for figure in ("", "_stderr", "_p_chance")]
    more = ["answer_logprob", "answer_margin", "n", "subjects", "truncated", "fewshot", "details", "seconds"]
    assert list(written) == ["questions", *forms, *more]
    assert written["n"] == 12
    assert len(Retention.load(written["details"]).questions) == 12
    progress = [line for line in done.stdout.splitlines() if line.startswith("prompts ")]
    assert "24/24" in progress[-1]
    figures = [line for line in done.stdout.splitlines() if line not in progress]
    for line, (name, value) in zip(figures, written.items(), strict=True):
        assert line.split(maxsplit=1) == [name, f"{value:.4f}" if isinstance(value, float) else str(value)]
    assert "lm_eval" not in done.stderr
    assert "requests" not in done.stderr
    # matplotlib, where it is installed, is imported by torchmetrics and lists the fonts.
    assert not [path for path in home.rglob("*") if path.is_file() and path.parent.name != "matplotlib"]
    assert {path for path in ROOT.iterdir() if path.name != "__pycache__"} == before


def test_the_command_takes_an_adapter_and_a_file_of_questions(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_model), load_tokenizer(str(tiny_model))
    model.save_pretrained(tmp_path / "adapter")
    questions = spread(shipped_questions(), 20)
    chosen = by_hand(model, tokenizer, questions)
    rows = [q.as_dict() | {"answer": a} for q, a in zip(questions, chosen, strict=True)]
    path, metrics = tmp_path / "q.jsonl", tmp_path / "m.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["mmlu", "--model", str(tiny_model), "--questions", str(path), "--metrics", str(metrics)]
    evaluate([*command, "--adapter", str(tmp_path / "adapter")])
    on = json.loads(metrics.read_text())
    assert (on["acc"], on["n"], on["questions"]) == (1.0, 20, str(path))
    evaluate(command)
    assert json.loads(metrics.read_text())["acc"] < 1


def test_the_command_compares_an_adapter_with_its_base(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    model.save_pretrained(tmp_path / "adapter")
    metrics, text = tmp_path / "m.json", tmp_path / "text.txt"
    text.write_text("Fleas live for days.\n\nParis is the capital\nof France.\n \n")
    command = ["mmlu", "--model", str(tiny_model), "--metrics", str(metrics), "--limit", "40", "--text", str(text)]
    evaluate(command)
    alone = json.loads(metrics.read_text())
    base = Path(alone["details"]).rename(tmp_path / "base.jsonl")
    evaluate([*command, "--adapter", str(tmp_path / "adapter"), "--paired", "true"])
    both = json.loads(metrics.read_text())
    measures = ["acc", "acc_cloze", "answer_logprob", "answer_margin", "bits_per_byte"]
    for measure_ in measures:
        assert both[f"base.{measure_}"] == alone[measure_]
        difference = both[f"difference.{measure_}"]
        assert difference == pytest.approx(both[measure_] - alone[measure_])
        assert both[f"difference.{measure_}.low"] <= difference <= both[f"difference.{measure_}.high"]
    assert both["documents"] == 2
    assert both["difference.bits_per_byte"] != 0
    assert sorted(both["judged"] + both["not_judged_base_at_chance"]) == sorted(measures)
    assert Retention.load(metrics.with_suffix(".details.base.jsonl")) == Retention.load(base)
    # The same from a file that the base has left.
    evaluate([*command, "--adapter", str(tmp_path / "adapter"), "--against", str(base)])
    assert {**json.loads(metrics.read_text()), "seconds": 0} == {**both, "seconds": 0}
    with pytest.raises(SystemExit, match="the two measurements are of different questions"):
        evaluate([*command, "--limit", "7", "--against", str(base)])


def test_the_command_puts_examples_before_questions(tiny_model: Path, tmp_path: Path) -> None:
    questions, metrics = tmp_path / "q.jsonl", tmp_path / "m.json"
    rows = [q.as_dict() | {"question": f"{q.question}?"} for q in spread(shipped_questions(), 4)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["mmlu", "--model", str(tiny_model), "--questions", str(questions), "--metrics", str(metrics)]
    found = []
    for more in ([], ["--fewshot", "0"], ["--fewshot", "1"], ["--fewshot", "2"]):
        evaluate([*command, *more])
        found.append(json.loads(metrics.read_text())["answer_logprob"])
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fewshot", "q.jsonl", "--details", "q.jsonl"], r"^error: details would overwrite q\.jsonl, which is read"),
        (
            ["--text", "x.base.jsonl.gz", "--details", "x.jsonl.gz", "--adapter", "/nowhere", "--paired", "true"],
            r"^error: details of the base would overwrite x\.base\.jsonl\.gz, which is read",
        ),
    ],
)
def test_the_command_writes_no_file_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        evaluate(["mmlu", "--model", "/nowhere", "--metrics", "m.json", *more])


def test_metrics_are_written_when_the_details_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(Retention, "save", full)
    metrics = tmp_path / "m.json"
    with pytest.raises(SystemExit, match="the disk is full"):
        evaluate(["mmlu", "--model", str(tiny_model), "--metrics", str(metrics), "--limit", "2"])
    assert not metrics.exists()


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, dev: {data}}}}}
test_split: test
fewshot_split: dev
output_type: {kind}
doc_to_text: "{{{{country}}}}:"
doc_to_target: "{{{{capital}}}}"
{more}
"""


@pytest.mark.parametrize(
    ("kind", "more", "figure"),
    [
        ("multiple_choice", "doc_to_choice: [Paris, Berlin]", "acc,none"),
        ("generate_until", "generation_kwargs: {until: ['.'], max_gen_toks: 3}", "exact_match,none"),
        ("loglikelihood", "num_fewshot: 0\nmetric_list: [{metric: acc}]", "acc,none"),
    ],
)
def test_any_task_of_lm_eval_runs_on_the_live_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, more: str, figure: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "capitals.jsonl"
    rows = [{"country": c, "capital": k} for c, k in (("France", "Paris"), ("Germany", "Berlin"), ("Bavaria", "Paris"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(TASK.format(data=data, kind=kind, more=more))
    command = ["mmlu", "--model", str(tiny_model), "--metrics", str(tmp_path / "m.json"), "--tasks+", "capitals"]
    evaluate([*command, "--include_path", str(tmp_path / "tasks"), "--fewshot", "1"])
    found = json.loads((tmp_path / "m.json").read_text())
    assert 0 <= found[f"capitals.{figure}"] <= 1
    assert found["capitals.n-shot"] == (0 if "num_fewshot: 0" in more else 1)
    if kind == "multiple_choice":
        model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
        shots = lm_eval_tasks(model, tokenizer, ["capitals"], 0, include_path=str(tmp_path / "tasks"))
        names = [[logp(model, tokenizer, f"{row['country']}:", f" {c}") for c in ("Paris", "Berlin")] for row in rows]
        right = [
            scores.index(max(scores)) == ("Paris", "Berlin").index(r["capital"])
            for scores, r in zip(names, rows, strict=True)
        ]
        assert shots["capitals"]["acc,none"] == pytest.approx(fmean(right))


def test_what_lm_eval_cannot_run_is_said_in_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "capitals.jsonl").write_text('{"country": "France", "capital": "Paris"}\n')
    task = TASK.format(data=tmp_path / "capitals.jsonl", kind="loglikelihood", more="unsafe_code: true")
    (tmp_path / "capitals.yaml").write_text(task)
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    with pytest.raises(UserError, match=r"lm-eval cannot run capitals: .* marked as unsafe"):
        lm_eval_tasks(model, tokenizer, ["capitals"], include_path=str(tmp_path))


def test_only_an_adapter_that_leaves_its_base_alone_is_compared_with_it(tiny_model: Path, tmp_path: Path) -> None:
    adapted(tiny_model, bias="all").save_pretrained(tmp_path / "adapter")
    files = ["--adapter", str(tmp_path / "adapter"), "--metrics", str(tmp_path / "m.json")]
    with pytest.raises(SystemExit, match=r"the adapter changes .*: turned off, it does not leave the base model"):
        evaluate(["mmlu", "--model", str(tiny_model), *files, "--limit", "2", "--paired", "true"])


@pytest.mark.parametrize(
    ("against", "named"),
    [
        ("old.json", {"metrics": "old.json"}),
        ("old.jsonl", {"metrics": "m.json", "details": "old.jsonl"}),
        ("m.details.jsonl", {"metrics": "m.json"}),
    ],
)
def test_what_is_compared_with_is_not_overwritten(against: str, named: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / against
    old.write_text("kept")
    files = [word for option, name in named.items() for word in (f"--{option}", str(tmp_path / name))]
    with pytest.raises(SystemExit, match=rf"would overwrite [^\n]*{old.name}, which is read"):
        evaluate(["mmlu", "--model", "any/model", "--against", str(old), *files])
    assert old.read_text() == "kept"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "models/none"], "there is no model directory 'models/none'"),
        (["--questions", "none.jsonl"], "none.jsonl does not exist"),
        (["--questions", os.devnull], "is no regular file"),
        (["--limit", "0"], "limit is 0"),
        (["--fewshot", "1"], "the shipped questions are the examples"),
        (["--text", os.devnull], "is no regular file"),
        (["--paired", "true"], "it needs --adapter"),
        (["--against", "none.jsonl"], "none.jsonl"),
        (["--include_path", "."], "include_path is for --tasks"),
        (["--tasks+", "mmlu", "--text", "shipped"], "tasks are lm-eval's own business"),
        (["--tasks+", "hellaswag", "--limit", "0"], "limit is 0; it must be at least 1"),
        (["--tasks+", "hellaswag", "--fewshot", "-1"], "fewshot is -1; it must be 0 or more"),
        (["--tasks+", "nothing_of_that_name"], "lm-eval has no task 'nothing_of_that_name'"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--metrics", "."], "is a directory; name a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny_model: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        evaluate(["mmlu", "--model", str(tiny_model), "--metrics", str(tmp_path / "m.json"), *more])
