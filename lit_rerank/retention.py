"""Retention: what a model still knows, measured by lm-eval on the model that is loaded.

One pass of lm-eval asks each of MMLU's questions in two forms and reads general text:

- *letters*: the choices stand in the prompt, the model names one (MMLU as it is mostly reported). Small models guess.
- *cloze*: the choices do not stand there, the text of each is scored as what follows "Answer:" (lm-eval's
  `mmlu_continuation`, by `acc_norm`: log-likelihood over the number of characters). Small models know something here.
- bits per byte of documents, each read from its beginning.

The unit is the question, or the document. How two measurements differ is `lit_rerank.paired`'s business.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from data_modules.sources.base import parse_object, read_lines, write_rows
from lit_rerank.errors import UserError
from lit_rerank.general_text import Document
from lit_rerank.live_lm import LiveLM, Progress, undisturbed
from lit_rerank.paired import OF_QUESTIONS, above_chance
from lit_rerank.questions import LETTERS, Question, check_examples, shipped_questions, spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTER_TASK: dict[str, Any] = {
    "task": "mmlu_letters",
    "test_split": "test",
    "num_fewshot": 0,
    "output_type": "multiple_choice",
    "description": (
        "The following are multiple choice questions (with answers) about {{subject.replace('_', ' ')}}.\n\n"
    ),
    "doc_to_text": (
        "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
    ),
    "doc_to_choice": list(LETTERS),
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
CLOZE_TASK: dict[str, Any] = {
    "task": "mmlu_cloze",
    "test_split": "test",
    "num_fewshot": 0,
    "output_type": "multiple_choice",
    "description": "The following are questions (with answers) about {{subject.replace('_', ' ')}}.\n\n",
    "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
}
TEXT_TASK: dict[str, Any] = {
    "task": "general_text",
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": "bits_per_byte"}],
}

SEED = 1234  # lm-eval's own
_LN2 = math.log(2)


@dataclass(frozen=True)
class Answered:
    """A question, answered.

    Attributes:
        id, subject: the question's.
        letters, cloze: log-likelihood of each choice, in nats; of the cloze form, per character of the choice.
        answer: the right one (0 to 3).
        chance: what `cloze[answer]` would be if all of the model's tokens were equally likely.
    """

    id: str
    subject: str
    letters: tuple[float, ...]
    cloze: tuple[float, ...]
    answer: int
    chance: float

    @property
    def acc(self) -> float:
        return float(self.letters.index(max(self.letters)) == self.answer)

    @property
    def acc_cloze(self) -> float:
        return float(self.cloze.index(max(self.cloze)) == self.answer)

    @property
    def answer_logprob(self) -> float:
        return self.cloze[self.answer]

    @property
    def answer_margin(self) -> float:
        """How much likelier the right answer is than the wrong ones are in the mean: unlike `answer_logprob`, it is the
        same when all answers become less likely."""
        return self.answer_logprob - fmean(self.cloze[: self.answer] + self.cloze[self.answer + 1 :])


@dataclass(frozen=True)
class Read:
    """A document, read.

    Attributes:
        bits: minus its log-likelihood to the base 2.
        chance: what `bits` would be if all of the model's tokens were equally likely; None: not told.
    """

    id: str
    bits: float
    bytes: int
    chance: float | None = None


@dataclass(frozen=True)
class Retention:
    """A measurement: every question and every document.

    Attributes:
        truncated: prompts that lost their beginning, for with it they exceed the model's context.
        examples: ids of the answered questions that stood before those of their subject; None: not told.
    """

    questions: tuple[Answered, ...]
    documents: tuple[Read, ...] = ()
    truncated: int = 0
    examples: tuple[str, ...] | None = None

    def figures(self) -> dict[str, Any]:
        """What is reported.

        `acc` and `acc_cloze` (0 to 1) with standard error and the p-value of one-sided binomial tests against
        guessing (1/4), `answer_logprob` (mean over questions of the right answer's log-likelihood, nats per
        character), `answer_margin` (how much more that is than the wrong answers' mean), `bits_per_byte` (of all
        documents together), and how many of each.
        """
        figures: dict[str, Any] = {}
        if self.questions:
            for name in ("acc", "acc_cloze"):
                values = [getattr(question, name) for question in self.questions]
                figures[name] = fmean(values)
                figures[f"{name}_stderr"] = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
                figures[f"{name}_p_chance"] = above_chance(name, self)
            for name in ("answer_logprob", "answer_margin"):
                figures[name] = fmean(getattr(question, name) for question in self.questions)
            figures["n"] = len(self.questions)
            figures["subjects"] = len({question.subject for question in self.questions})
        if self.documents:
            figures["bits_per_byte"] = sum(d.bits for d in self.documents) / sum(d.bytes for d in self.documents)
            figures["documents"] = len(self.documents)
        return figures | {"truncated": self.truncated}

    def rows(self) -> list[dict[str, Any]]:
        """Every question and document, and at last how they were read, as JSON holds it."""
        asked = [vars(q) | {name: getattr(q, name) for name in OF_QUESTIONS} for q in self.questions]
        return [*asked, *map(vars, self.documents), {"truncated": self.truncated, "examples": self.examples}]

    def save(self, path: str | Path) -> None:
        """Write one JSON object a line, packed where the name ends in `.gz`.

        Raises:
            UserError: if a figure is no finite number.
        """
        try:
            write_rows(self.rows(), path)
        except ValueError as error:
            raise UserError(f"cannot write {path}: the model's log-likelihoods are no finite numbers") from error

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Retention":
        """The measurement that `rows` has told of.

        Those of earlier versions told nothing of examples, and of chance what random bytes would cost.
        """
        examples = next((r["examples"] for r in rows if "examples" in r), None)
        return cls(
            tuple(
                Answered(r["id"], r["subject"], tuple(r["letters"]), tuple(r["cloze"]), r["answer"], r["chance"])
                for r in rows
                if "answer" in r
            ),
            tuple(Read(r["id"], r["bits"], r["bytes"], r.get("chance")) for r in rows if "bits" in r),
            sum(r["truncated"] for r in rows if "truncated" in r),
            None if examples is None else tuple(examples),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Retention":
        """What `save` has written.

        Raises:
            UserError: if it is something else.
        """
        try:
            return cls.of_rows([parse_object(line) for _, line in read_lines(Path(path))])
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{path} holds no measurement of retention: {error}") from error


def measure(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    text: Sequence[Document] = (),
    examples: Sequence[Question] = (),
    batch_size: int = 4,
    progress: Progress = lambda count: None,
) -> Retention:
    """What the model knows, as it now is: with the adapters that are on, at the strength that they have.

    The same weights give the same figures. The model's mode and the state of the random generators are afterwards as
    before.

    Args:
        model: loaded, where it shall compute.
        tokenizer: the model's.
        questions: what is asked.
        text: what is read.
        examples: answered questions; those of a question's subject stand before it, in this order.
        batch_size: prompts read at a time; on a CPU, few are fast.
        progress: told how many prompts (two a question) and documents have been read since the last time.
    """
    if not (questions or text):
        raise UserError("there is no question")
    with undisturbed(model):
        lm = LiveLM(model, tokenizer, batch_size, progress)
        # What lm-eval builds dies before the random state is restored: that, too, draws numbers.
        answers = _answers(lm, [*_question_tasks(questions, examples), *_text_task(text)])
        return Retention(
            tuple(_answered(lm, i, q, answers) for i, q in enumerate(questions)),
            tuple(
                Read(d.id, -answers["general_text", i][0] / _LN2, d.bytes, lm.uniform(d.text) / _LN2)
                for i, d in enumerate(text)
            ),
            lm.truncated,
            tuple(example.id for example in examples),
        )


def mmlu_smoke(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int = 4, limit: int | None = None
) -> dict[str, Any]:
    """Figures of the 281 dev questions that lm-eval ships: a smoke test that needs no download, not MMLU's figure."""
    return measure(model, tokenizer, spread(shipped_questions(), limit), batch_size=batch_size).figures()


def lm_eval_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    names: Sequence[str],
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | None = None,
    batch_size: int = 4,
) -> dict[str, dict[str, float]]:
    """Any of lm-eval's tasks and groups by name (`mmlu`, `hellaswag`, ...), as lm-eval reports them: {task: figures}.

    Args:
        num_fewshot: examples before each question; by default as the task says.
        limit: only the first so many documents of each task.
        include_path: a folder with task files of your own.

    Returns:
        Also, as `n-shot`, how many examples stood before each question: some tasks do not let that be changed.

    Raises:
        UserError: if there is no such task, if its data cannot be had, or if lm-eval cannot run it.
    """
    from lm_eval.tasks import TaskManager

    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"fewshot is {num_fewshot}; it must be 0 or more")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    with undisturbed(model):
        manager = TaskManager(include_path=include_path)
        unknown = [name for name in names if name not in manager.all_tasks]
        if unknown:
            raise UserError(f"lm-eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists them")
        try:
            loaded = manager.load(list(names))
        except Exception as error:  # each layer of a download has errors of its own
            raise UserError(f"cannot load the data of {', '.join(names)}: {' '.join(str(error).split())}") from error
        for task in loaded["tasks"].values():
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:  # 0 is the task's own, and stays
                task.set_config("num_fewshot", num_fewshot)
            task.set_fewshot_seed(SEED)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(SEED)
        lm = LiveLM(model, tokenizer, batch_size)
        try:
            done: Any = evaluate(lm, loaded, limit=limit, log_samples=False)
        except UserError:
            raise
        except ValueError as error:  # such as for tasks with images, or with code to be run
            raise UserError(f"lm-eval cannot run {', '.join(names)}: {' '.join(str(error).split())}") from error
    shots = done["n-shot"]
    return {
        name: {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
        | ({"n-shot": shots[name]} if name in shots else {})
        for name, figures in done["results"].items()
    }


def _question_tasks(questions: Sequence[Question], examples: Sequence[Question]) -> list[ConfigurableTask]:
    """Both forms, a task each; with examples, of each subject: lm-eval takes a task's examples from one list."""
    check_examples(questions, examples)
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for i, question in enumerate(questions):
        subject = question.subject if examples else ""
        by_subject.setdefault(subject, []).append(question.as_dict() | {"number": i})
    tasks = []
    for subject, documents in by_subject.items():
        shown = [example.as_dict() for example in examples if example.subject == subject]
        splits = {"test": Dataset.from_list(documents)} | ({"dev": Dataset.from_list(shown)} if shown else {})
        of_examples = {
            "num_fewshot": len(shown),
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
        }
        for form in (LETTER_TASK, CLOZE_TASK):
            own = {"task": f"{form['task']}:{subject}", "custom_dataset": lambda splits=splits: splits}
            tasks.append(ConfigurableTask(config=form | own | (of_examples if shown else {})))
    return tasks


def _text_task(text: Sequence[Document]) -> list[ConfigurableTask]:
    rows = [{"text": document.text, "number": i} for i, document in enumerate(text)]
    if not rows:
        return []
    return [ConfigurableTask(config=TEXT_TASK | {"custom_dataset": lambda: {"test": Dataset.from_list(rows)}})]


def _answers(lm: LiveLM, tasks: Sequence[ConfigurableTask]) -> dict[tuple[str, int], list[float]]:
    """Log-likelihoods of what each task asks of each item, in nats: {(kind of task, number): one for each choice}."""
    done: Any = evaluate(lm, {"tasks": {task.task_name: task for task in tasks}}, bootstrap_iters=0)
    answers = {}
    for name, samples in done["samples"].items():
        for sample in samples:
            responses = sample["filtered_resps"]
            values = [float(r[0]) if isinstance(r, tuple | list) else float(r) for r in responses]
            answers[name.split(":")[0], sample["doc"]["number"]] = values
    return answers


def _answered(
    lm: LiveLM, number: int, question: Question, answers: Mapping[tuple[str, int], Sequence[float]]
) -> Answered:
    lengths = [len(choice) for choice in question.choices]
    return Answered(
        question.id,
        question.subject,
        tuple(answers["mmlu_letters", number]),
        tuple(logp / n for logp, n in zip(answers["mmlu_cloze", number], lengths, strict=True)),
        question.answer,
        -lm.uniform(f" {question.choices[question.answer]}") / lengths[question.answer],
    )
