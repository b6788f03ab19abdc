"""MMLU's questions: out of lm-eval's task files, and out of a file."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_modules.sources.base import read_lines
from lit_rerank import questions as module
from lit_rerank.errors import UserError
from lit_rerank.questions import Question, QuestionsSource, open_questions, questions_of_tasks, shipped_questions

SAMPLE = {"question": "1 + 1?\n(A) 1 (B) 2 (C) 3 (D) 4", "target": "Let's think. The answer is (B)."}
ROW = {"subject": "arithmetic", "question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}


def task_file(folder: Path, *samples: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "mmlu_arithmetic.yaml"
    path.write_text(yaml.safe_dump({"dataset_name": "arithmetic", "fewshot_config": {"samples": list(samples)}}))
    return path


def test_lm_eval_ships_281_questions_of_57_subjects() -> None:
    questions = shipped_questions()
    assert len(questions) == 281
    per_subject = Counter(question.subject for question in questions)
    assert len(per_subject) == 57
    assert min(per_subject.values()) == 3
    assert Counter(question.answer for question in questions) == {0: 66, 1: 70, 2: 68, 3: 77}
    assert all(choice.strip() for question in questions for choice in question.choices)


def test_shipped_questions_are_those_of_mmlu(shared_data: Path) -> None:
    """By letters and digits alone: the two differ in white space, and lm-eval mended some (and one wrong answer)."""

    def bare(text: str) -> str:
        return re.sub(r"\W+", "", text)

    dev = {
        (question.subject, bare(question.question)): (*map(bare, question.choices), question.answer)
        for question in QuestionsSource(shared_data / "mmlu" / "dev.jsonl.gz")
    }
    found = [
        dev[key] == (*map(bare, question.choices), question.answer)
        for question in shipped_questions()
        if (key := (question.subject, bare(question.question))) in dev
    ]
    assert len(dev) == 284, "285 with one twice"
    assert len(found) == 276
    assert sum(found) == 274


def test_an_example_with_five_choices_is_left_out(tmp_path: Path) -> None:
    fifth = {"question": SAMPLE["question"] + " (E) 5", "target": "The answer is (E)."}
    task_file(tmp_path / "tasks", SAMPLE, fifth)
    assert questions_of_tasks(tmp_path / "tasks") == [Question("arithmetic", "1 + 1?", ("1", "2", "3", "4"), 1)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (SAMPLE | {"question": "1 + 1?"}, "example 2: no question with choices"),
        (SAMPLE | {"question": "1 + 1?\n(A) 1 (B) 2 (C) 3"}, "example 2: no question with choices"),
        (SAMPLE | {"target": "It is 2."}, "example 2: no question with choices"),
        (SAMPLE | {"target": "The answer is (E)."}, "example 2: no question with choices"),
        (SAMPLE | {"question": 2}, "not a task file with few-shot examples"),
        ({"question": "1 + 1?"}, "not a task file with few-shot examples.*target"),
        ("1 + 1?", "not a task file"),
    ],
)
def test_changed_task_files_are_noticed(tmp_path: Path, sample: object, message: str) -> None:
    path = task_file(tmp_path / "tasks", SAMPLE, sample)
    with pytest.raises(UserError, match=f"(?s){re.escape(str(path))}.*{message}"):
        questions_of_tasks(path.parent)


@pytest.mark.parametrize("content", ["dataset_name: x", "[", "- 1", "fewshot_config: {samples: 3}\ndataset_name: x"])
def test_files_that_are_no_tasks_are_noticed(tmp_path: Path, content: str) -> None:
    (tmp_path / "mmlu_x.yaml").write_text(content)
    with pytest.raises(UserError, match=r"mmlu_x\.yaml is not a task file"):
        questions_of_tasks(tmp_path)


def test_another_number_of_shipped_questions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHIPPED_IN", Path("tasks", "gone"))
    with pytest.raises(UserError, match=r"ships 0 questions instead of 281 in .*gone"):
        shipped_questions()


def test_without_lm_eval_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        shipped_questions()


def test_subjects_with_fewer_examples_than_asked_for_are_named(tmp_path: Path) -> None:
    there = Counter(question.subject for question in shipped_questions())
    few, enough = (next(name for name, count in there.items() if count == n) for n in (3, 5))
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(ROW | {"subject": subject}) + "\n" for subject in (few, enough)))
    with pytest.warns(UserWarning, match=f"^fewer than 4 examples: {few} 3$"):
        _, examples = open_questions(str(path), 4)
    assert Counter(example.subject for example in examples)[few] == 3
    path.write_text(json.dumps(ROW) + "\n")
    with pytest.raises(UserError, match="there is no example for the subject arithmetic"):
        open_questions(str(path), 4)


def test_a_file_of_questions_is_read(shared_data: Path) -> None:
    path = shared_data / "mmlu" / "test_20_per_subject.jsonl.gz"
    questions = list(QuestionsSource(path))
    assert [question.as_dict() for question in questions] == [json.loads(line) for _, line in read_lines(path)]
    assert len(questions) == 57 * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("answer"), '"answer" is missing'),
        (lambda row: row.update(answer=4), "the answer is the number of a choice, 0 to 3, not 4"),
        (lambda row: row.update(answer=-1), "0 to 3, not -1"),
        (lambda row: row.update(answer="B"), '"answer" must be a whole number'),
        (lambda row: row.update(answer=True), '"answer" must be a whole number'),
        (lambda row: row.update(choices=["1", "2", "3"]), "has 4 choices, not 3"),
        (lambda row: row.update(choices=["1", "2", "3", 4]), '"choices" must be a list of strings'),
        (lambda row: row.update(choices="1234"), '"choices" must be a list of strings'),
        (lambda row: row.update(choices=["1", "2", " ", "4"]), "a choice is empty"),
        (lambda row: row.update(question=" "), "the subject or the question is empty"),
        (lambda row: row.update(subject=""), "the subject or the question is empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, change: Callable[[dict[str, object]], object], message: str) -> None:
    broken = dict(ROW)
    change(broken)
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(broken)}\n")
    with pytest.raises(UserError, match=f"{re.escape(str(path))}:2: .*{message}"):
        list(QuestionsSource(path))
    skipping = QuestionsSource(path, on_error="skip")
    assert [question.as_dict() for question in skipping] == [ROW]
    assert len(skipping.skipped) == 1
