"""MMLU's multiple-choice questions (Hendrycks et al. 2021): those that lm-eval ships, or a file of them."""

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_modules.sources.base import OnError, Row, Source, existing_file, field, is_list, is_text, is_whole, text
from lit_rerank.errors import UserError

Item = TypeVar("Item")

LETTERS = "ABCD"
SHIPPED, HUB = "shipped", "hub"

_COUNT = 281
_NAMED = 10  # subjects in a warning

_SHIPPED_IN = Path("tasks", "mmlu", "flan_cot_fewshot")
_QUESTION = re.compile(
    r"(?P<question>.+)\n\(A\) (.+?)\s\(B\) (.+?)\s\(C\) (.+?)\s\(D\) (.+?)(?P<fifth>\s\(E\) .+)?", re.DOTALL
)
_ANSWER = re.compile(r".*\bThe answer is \(([A-E])\)\.", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question with four choices; `answer` (0 to 3) is the right one."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not (self.subject.strip() and self.question.strip()):
            raise UserError("the subject or the question is empty")
        if len(self.choices) != len(LETTERS):
            raise UserError(f"a question has {len(LETTERS)} choices, not {len(self.choices)}")
        if not 0 <= self.answer < len(LETTERS):
            raise UserError(f"the answer is the number of a choice, 0 to {len(LETTERS) - 1}, not {self.answer}")
        if not all(choice.strip() for choice in self.choices):
            raise UserError("a choice is empty")

    @property
    def id(self) -> str:
        """Tells this question from all others."""
        return hashlib.blake2b(json.dumps(self.as_dict()).encode(), digest_size=8).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, the choices as a list."""
        return asdict(self) | {"choices": list(self.choices)}


class QuestionsSource(Source[Question]):
    """The questions of a `.jsonl` or `.jsonl.gz` file.

    {"subject": str, "question": str, "choices": [str, str, str, str], "answer": 0-3}
    """

    def __init__(self, path: str | Path, on_error: OnError = "raise") -> None:
        super().__init__(on_error)
        self.path = existing_file(path)

    def _read(self) -> Iterator[Question]:
        return self._jsonl(self.path, _from_row)


def shipped_questions() -> list[Question]:
    """The dev questions of MMLU that lm-eval's wheel holds as examples of reasoning, sorted by subject.

    One of the 282 is left out: it has five choices.

    Raises:
        UserError: if the installed lm-eval holds others; figures would not be comparable.
    """
    folder = _shipped_in()
    questions = questions_of_tasks(folder)
    if len(questions) != _COUNT:
        raise UserError(
            f"lm-eval {version('lm-eval')} ships {len(questions)} questions instead of {_COUNT} in {folder}: install "
            "the version that constraints.txt names, or name a file of questions"
        )
    return questions


def shipped_explanations() -> list[tuple[str, str]]:
    """(subject, why an answer is right) of each of the examples of reasoning, sorted by subject."""
    return [
        (subject, target)
        for path in sorted(_shipped_in().glob("mmlu_*.yaml"))
        for subject, samples in [_samples(path)]
        for _, target in samples
    ]


def hub_questions(split: str) -> list[Question]:
    """MMLU itself (`cais/mmlu`) from the Hugging Face hub: the 14,042 questions of `test`, or the 285 of `dev`.

    Raises:
        UserError: if it is neither in the cache nor to be had.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset("cais/mmlu", "all", split=split)
    except Exception as error:  # each layer of a download has errors of its own
        raise UserError(f"cannot load cais/mmlu from the Hugging Face hub: {' '.join(str(error).split())}") from error
    return [_from_row(dict(row)) for row in rows]


def spread(questions: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` of the questions at even distances (files are sorted by subject)."""
    if limit is None or limit > len(questions):
        return list(questions)
    if limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    return [questions[i * len(questions) // limit] for i in range(limit)]


def open_questions(
    named: str, fewshot: int | str | None = None, limit: int | None = None
) -> tuple[list[Question], list[Question]]:
    """What is asked, and the answered examples that stand before it.

    Args:
        named: a file, `hub` or `shipped`.
        fewshot: a file of examples, or how many of each subject's dev questions (of the hub, or those shipped).
        limit: only so many questions, spread evenly over all.
    """
    files = {HUB: lambda: hub_questions("test"), SHIPPED: shipped_questions}
    asked = files.get(named, lambda: _of_file(named))()
    if isinstance(fewshot, str):
        examples = _of_file(fewshot)
    elif fewshot and named == SHIPPED:
        raise UserError("the shipped questions are the examples: name other questions, or a file of examples")
    else:
        dev = [] if not fewshot else hub_questions("dev") if named == HUB else shipped_questions()
        examples = first_of_each_subject(dev, fewshot or 0)
    asked = spread(asked, limit)
    check_examples(asked, examples)
    if isinstance(fewshot, int):
        _warn_of_few(asked, examples, fewshot)
    return asked, examples


def check_examples(questions: Sequence[Question], examples: Sequence[Question]) -> None:
    """Raise a UserError where a question is among the examples, or, if there are any, its subject has none."""
    known, subjects = {example.id for example in examples}, {example.subject for example in examples}
    for question in questions:
        if question.id in known:
            raise UserError(f"a question of {question.subject} is among the examples: {question.question!r}")
        if examples and question.subject not in subjects:
            raise UserError(f"there is no example for the subject {question.subject}")


def _warn_of_few(asked: Sequence[Question], examples: Sequence[Question], fewshot: int) -> None:
    """Say of which subjects there are fewer examples than so many."""
    there = Counter(example.subject for example in examples)
    few = [f"{name} {there[name]}" for name in sorted({q.subject for q in asked}) if there[name] < fewshot]
    if few:
        more = f", and {len(few) - _NAMED} more subjects" if len(few) > _NAMED else ""
        warnings.warn(f"fewer than {fewshot} examples: {', '.join(few[:_NAMED])}{more}", stacklevel=3)


def _of_file(path: str) -> list[Question]:
    questions = list(QuestionsSource(path))
    if not questions:
        raise UserError(f"{path} holds no question")
    return questions


def first_of_each_subject(questions: Sequence[Question], count: int) -> list[Question]:
    """At most so many of each subject."""
    if count < 0:
        raise UserError(f"fewshot is {count}; it must be 0 or more")
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        by_subject.setdefault(question.subject, []).append(question)
    return [question for own in by_subject.values() for question in own[:count]]


def questions_of_tasks(folder: Path) -> list[Question]:
    """The four-choice questions among the few-shot examples of lm-eval's task files (one a subject) in a folder."""
    return [question for path in sorted(folder.glob("mmlu_*.yaml")) for question in _of_task(path)]


def _shipped_in() -> Path:
    package = find_spec("lm_eval")
    if package is None or package.origin is None:
        raise UserError("lm-eval is not installed: pip install lm-eval")
    return Path(package.origin).parent / _SHIPPED_IN


def _samples(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """Subject, and (question, target) of each few-shot example of a task file."""
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        samples = task["fewshot_config"]["samples"]
        return task["dataset_name"], [(text(sample, "question"), text(sample, "target")) for sample in samples]
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a task file with few-shot examples as in lm-eval 0.4.13: {error!r}") from error


def _of_task(path: Path) -> Iterator[Question]:
    subject, texts = _samples(path)
    for number, (asked, target) in enumerate(texts, start=1):
        question = _QUESTION.fullmatch(asked)
        answer = _ANSWER.match(target)
        if question is None or answer is None or (answer[1] == "E" and not question["fifth"]):
            raise UserError(f"{path}, example {number}: no question with choices (A) to (D) and an answer like (A)")
        if not question["fifth"]:
            yield Question(subject, question["question"], question.groups()[1:5], LETTERS.index(answer[1]))


def _from_row(row: Row) -> Question:
    choices = field(row, "choices", is_list, "a list of strings")
    if not all(map(is_text, choices)):
        raise UserError('"choices" must be a list of strings')
    answer = field(row, "answer", is_whole, "a whole number")
    return Question(text(row, "subject"), text(row, "question"), tuple(choices), answer)
