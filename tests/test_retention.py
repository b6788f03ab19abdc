"""MMLU by lm-eval on the live model: right numbers, one pass a question, and nothing of the model changed."""

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model

from lit_rerank.backbone import load_model, load_tokenizer
from lit_rerank.cli import evaluate
from lit_rerank.errors import UserError
from lit_rerank.questions import Question, shipped_questions
from lit_rerank.retention import LETTER_TASK, LiveLM, mmlu, mmlu_smoke, spread

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
LM_EVAL = Path(str((find_spec("lm_eval") or pytest.fail("lm-eval is absent")).origin)).parent


def by_hand(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[int]:
    """The likeliest letter of each question, each letter read by itself, the whole text at a time."""
    chosen = []
    for question in questions:
        subject = question.subject.replace("_", " ")
        prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        prompt += question.question.strip() + "\n"
        for letter, choice in zip("ABCD", question.choices, strict=True):
            prompt += f"{letter}. {choice}\n"
        prompt += "Answer:"
        start = len(tokenizer(prompt).input_ids)
        scores = []
        for letter in "ABCD":
            ids = tokenizer(f"{prompt} {letter}", return_tensors="pt").input_ids
            with torch.no_grad():
                logps = model(ids).logits[0].float().log_softmax(-1)
            scores.append(sum(logps[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
        chosen.append(scores.index(max(scores)))
    return chosen


def accuracy(chosen: Sequence[int], questions: Sequence[Question]) -> float:
    return sum(answer == q.answer for answer, q in zip(chosen, questions, strict=True)) / len(questions)


def adapted(directory: Path, **lora: Any) -> Any:
    """A model with an adapter that has learned something (at random)."""
    torch.manual_seed(3)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, **({"target_modules": "all-linear"} | lora))
    model = get_peft_model(load_model(str(directory)), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.5)
    return model.eval()


@pytest.mark.parametrize("batch_size", [1, 5])
def test_accuracy_is_that_of_a_plain_loop(tiny_model: Path, batch_size: int) -> None:
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    questions = spread(shipped_questions(), 60)
    chosen = by_hand(model, tokenizer, questions)
    figures = mmlu(model, tokenizer, questions, batch_size)
    right = [answer == question.answer for answer, question in zip(chosen, questions, strict=True)]
    assert figures == {
        "acc": accuracy(chosen, questions),
        "acc_stderr": pytest.approx(stdev(right) / 60**0.5),
        "n": 60,
        "subjects": 57,
        "truncated": 0,
    }
    # With the model's answers as the key (or all others), nothing can be right by accident.
    key = [Question(q.subject, q.question, q.choices, a) for q, a in zip(questions, chosen, strict=True)]
    assert mmlu(model, tokenizer, key, batch_size)["acc"] == 1
    others = [Question(q.subject, q.question, q.choices, (q.answer + 1) % 4) for q in key]
    assert mmlu(model, tokenizer, others, batch_size)["acc"] == 0


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="models/smollm2-135m-instruct is absent: run `make model`")
def test_accuracy_of_a_real_model_is_that_of_a_plain_loop() -> None:
    model, tokenizer = load_model(str(SMOLLM2), dtype="float32").eval(), load_tokenizer(str(SMOLLM2))
    questions = sorted(shipped_questions(), key=lambda q: len(q.question))[:12]
    chosen = by_hand(model, tokenizer, questions)
    key = [Question(q.subject, q.question, q.choices, a) for q, a in zip(questions, chosen, strict=True)]
    assert mmlu(model, tokenizer, questions)["acc"] == accuracy(chosen, questions)
    assert mmlu(model, tokenizer, key)["acc"] == 1


def test_log_probabilities_are_those_of_lm_eval_itself(tiny_model: Path) -> None:
    """HFLM as it is, and here, where logits are computed only at the end: also for continuations of several tokens."""
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    texts = [("How long do fleas live?", " A hundred days."), ("Fleas", " live"), ("Fleas " * 30, "!"), ("", "Paris")]
    requests = [_Request(text) for text in texts]
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(requests, disable_tqdm=True)
    ours = LiveLM(model, tokenizer, batch_size=3).loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in plain]
    assert [logp for logp, _ in ours] == pytest.approx([logp for logp, _ in plain], abs=1e-4)


class _Request:
    def __init__(self, args: tuple[str, str]) -> None:
        self.args, self.task_name = args, None


@pytest.mark.parametrize("subject", ["abstract_algebra", "high_school_us_history"])
def test_prompts_are_those_of_lm_evals_mmlu(subject: str) -> None:
    folder = LM_EVAL / "tasks" / "mmlu" / "default"
    theirs = yaml.safe_load((folder / "_default_template_yaml").read_text())
    for name in ("output_type", "doc_to_text", "doc_to_choice", "doc_to_target", "metric_list"):
        assert LETTER_TASK[name] == theirs[name]
    description = yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text())["description"]
    document = Question(subject, " Why?\n", ("1", "2", "3", "4"), 1).as_dict()
    task = ConfigurableTask(config=LETTER_TASK | {"custom_dataset": lambda: {"test": _Documents([document])}})
    prompt = task.fewshot_context(document, num_fewshot=0)
    assert prompt == f"{description}Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"


class _Documents(list[dict[str, Any]]):
    features = dict.fromkeys(["subject", "question", "choices", "answer"])


def test_each_question_is_read_once_and_logits_only_at_its_end(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    rows, positions = [], []
    model.register_forward_hook(lambda *call: rows.append(len(call[-1].logits)))
    model.register_forward_hook(lambda *call: positions.append(call[-1].logits.shape[1]))
    answered: list[int] = []
    mmlu(model, tokenizer, spread(shipped_questions(), 10), batch_size=1, progress=answered.append)
    assert rows == answered == [1] * 10
    continuation = len(tokenizer(" A").input_ids)
    assert positions == [continuation] * 10


def test_the_smoke_test_asks_all_that_lm_eval_ships(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    figures = mmlu_smoke(model, tokenizer, batch_size=4)
    assert (figures["n"], figures["subjects"], figures["truncated"]) == (281, 57, 0)
    assert mmlu_smoke(model, tokenizer, batch_size=4, limit=3)["n"] == 3


def test_adapters_that_are_on_count(tiny_model: Path) -> None:
    model, tokenizer = adapted(tiny_model), load_tokenizer(str(tiny_model))
    questions = spread(shipped_questions(), 40)
    with model.disable_adapter():
        off = by_hand(model, tokenizer, questions)
    on = by_hand(model, tokenizer, questions)
    assert on != off
    key = [Question(q.subject, q.question, q.choices, a) for q, a in zip(questions, on, strict=True)]
    assert mmlu(model, tokenizer, key)["acc"] == 1
    with model.disable_adapter():
        assert mmlu(model, tokenizer, key)["acc"] == accuracy(off, key) < 1


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_nothing_of_model_tokenizer_or_random_state_changes(tiny_model: Path, lora: dict[str, Any]) -> None:
    model, tokenizer = adapted(tiny_model, **lora), load_tokenizer(str(tiny_model))
    tokenizer.pad_token = None
    model.train()
    model.base_model.model.model.layers[0].eval()  # whoever froze a layer's dropout finds it frozen
    modes = [layer.training for layer in model.modules()]
    weights = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    active = list(model.active_adapters)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    mmlu_smoke(model, tokenizer, batch_size=2, limit=4)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert [layer.training for layer in model.modules()] == modes
    assert list(model.active_adapters) == active
    assert tokenizer.pad_token is None
    for name, parameter in model.named_parameters():
        assert (id(parameter), parameter.requires_grad) == weights[name][:2]
        assert torch.equal(parameter, weights[name][2])
        assert parameter.grad is None
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_modes_are_restored_after_an_error_too(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)).train(), load_tokenizer(str(tiny_model))

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    level = logging.getLogger("lm_eval").level
    with pytest.raises(KeyboardInterrupt):
        mmlu(model, tokenizer, spread(shipped_questions(), 2), progress=stop)
    assert all(layer.training for layer in model.modules())
    assert logging.getLogger("lm_eval").level == level


def test_prompts_beyond_the_context_are_counted(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    questions = [Question("s", "why? " * n, ("1", "2", "3", "4"), 0) for n in (1, 400)]
    model.config.max_position_embeddings = 1000
    assert mmlu(model, tokenizer, questions)["truncated"] == 1
    assert not caplog.records


def test_limit_spreads_over_the_subjects() -> None:
    questions = [Question(str(i), "?", ("1", "2", "3", "4"), 0) for i in range(10)]
    assert [q.subject for q in spread(questions, 4)] == ["0", "2", "5", "7"]
    assert spread(questions, 11) == spread(questions, None) == questions
    with pytest.raises(UserError, match="limit is 0"):
        spread(questions, 0)


def test_nothing_to_ask_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="there is no question"):
        mmlu(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)), [])


def test_a_single_question_has_no_standard_error(tiny_model: Path) -> None:
    figures = mmlu_smoke(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)), batch_size=4, limit=1)
    assert figures["n"] == 1
    assert figures["acc_stderr"] is None


def test_batch_size_is_checked(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        mmlu_smoke(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)), batch_size=0)


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
    assert list(written) == ["questions", "acc", "acc_stderr", "n", "subjects", "truncated", "seconds"]
    assert written["n"] == 12
    lines = done.stdout.splitlines()
    assert len(lines) == len(written) + 1, done.stdout
    assert lines[0].startswith("questions")
    assert "12/12" in lines[0]
    for line, (name, value) in zip(lines[1:], written.items(), strict=True):
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "models/none"], "there is no model directory 'models/none'"),
        (["--questions", "none.jsonl"], "none.jsonl does not exist"),
        (["--questions", os.devnull], "is not|holds no question|does not exist"),
        (["--limit", "0"], "limit is 0"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--metrics", "."], "is a directory; name a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny_model: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        evaluate(["mmlu", "--model", str(tiny_model), "--metrics", str(tmp_path / "m.json"), *more])
