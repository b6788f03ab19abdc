"""Retention: what a model still knows, measured by lm-eval on the model that is loaded.

One pass of lm-eval asks each of MMLU's questions in two forms and reads general text:

- *letters*: the choices stand in the prompt, the model names one (MMLU as it is mostly reported). Small models guess.
- *cloze*: the choices do not stand there, the text of each is scored as what follows "Answer:" (lm-eval's
  `mmlu_continuation`, by `acc_norm`: log-likelihood over the number of characters). Small models know something here.
- bits per byte of documents, each read from its beginning.

The unit is the question, or the document. How two measurements differ is `lit_rerank.paired`'s business.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from lit_rerank.errors import UserError
from lit_rerank.general_text import Document
from lit_rerank.live_lm import LiveLM, Progress, undisturbed
from lit_rerank.measurement import Answered, Read, Retention
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

_LN2 = math.log(2)


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
