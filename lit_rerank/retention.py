"""Forgetting: accuracy on MMLU's questions, scored by lm-eval on a model that is loaded already."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from datasets import Dataset
from lm_eval.api import task as lm_eval_task
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from lit_rerank.errors import UserError
from lit_rerank.questions import LETTERS, Question, shipped_questions
from lit_rerank.rng import rng_state, set_rng_state
from lit_rerank.scoring import head_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], None]

# As lm-eval's own MMLU without examples: the letter with the highest log-probability after "Answer:" is the answer.
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


def mmlu_smoke(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int = 4, limit: int | None = None
) -> dict[str, Any]:
    """`mmlu` on the 281 dev questions that lm-eval ships: a smoke test that needs no download, not MMLU's figure."""
    return mmlu(model, tokenizer, spread(shipped_questions(), limit), batch_size)


def mmlu(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How many questions the model, with the adapters that are on, answers rightly.

    The model's mode and the state of the random generators are afterwards as before.

    Args:
        model: loaded, where it shall compute.
        tokenizer: the model's.
        questions: what is asked, without examples.
        batch_size: questions read at a time; on a CPU, small ones are fast (less padding).
        progress: told how many questions have been answered since the last time.

    Returns:
        `acc` (0 to 1) and its standard error `acc_stderr` (None for a single question), `n` questions of `subjects`
        subjects, `truncated` prompts (they lost their beginning: they exceed the model's context).
    """
    if not questions:
        raise UserError("there is no question")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    with _undisturbed(model), _quiet():
        lm = LiveLM(model, tokenizer, batch_size, progress)
        figures = _scored(lm, questions)
    stderr = figures["acc_stderr,none"]
    return {
        "acc": float(figures["acc,none"]),
        "acc_stderr": float(stderr) if len(questions) > 1 else None,
        "n": len(questions),
        "subjects": len({question.subject for question in questions}),
        "truncated": lm.truncated,
    }


def _scored(lm: HFLM, questions: Sequence[Question]) -> dict[str, Any]:
    """lm-eval's figures. What it builds dies here, before the random state is restored: that, too, draws numbers."""
    config = LETTER_TASK | {"custom_dataset": lambda: {"test": Dataset.from_list([q.as_dict() for q in questions])}}
    task = lm_eval_task.ConfigurableTask(config=config)
    results: Any = evaluate(lm, {"tasks": {task.task_name: task}}, log_samples=False)
    return dict(results["results"][task.task_name])


class LiveLM(HFLM):
    """lm-eval's way to a Hugging Face model, for one that is in use.

    It computes logits only where the continuations are: in the last positions.

    Attributes:
        truncated: prompts that exceeded the model's context.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        progress: Progress | None = None,
    ) -> None:
        # HFLM may not touch the model and the tokenizer: it would tie the weights of an adapted head to the
        # embeddings again, which fails, and give the tokenizer a token for padding.
        seen: Any = SimpleNamespace(config=model.config, device=model.device)
        super().__init__(
            pretrained=seen, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, softmax_dtype="float32"
        )
        self.truncated = 0
        self._live = model
        self._progress = progress
        self._longest_continuation = 1

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in HFLM, without its progress bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self._longest_continuation = max(len(continuation) for _, _, continuation in requests)
        self.truncated = len(
            {
                context
                for (context, _), ids, continuation in requests
                if len(ids) + len(continuation) > self.max_length + 1
            }
        )
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of the last positions of right-padded `inps`: (rows, positions, vocabulary).

        HFLM counts positions from the end (there may be more of them than tokens, as after prompt tuning).
        """
        padding = int((inps != 0).flip(-1).int().argmax(-1).max())  # HFLM pads with 0
        kept = padding + self._longest_continuation

        # Cloned: on a view, a bfloat16 head on the CPU takes twenty times as long.
        with head_input(self._live, lambda hidden: hidden[:, -kept:].clone(memory_format=torch.contiguous_format)):
            logits: Tensor = self._live(input_ids=inps, use_cache=False).logits
        if self._progress is not None:
            self._progress(len(inps))
        return logits


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """`limit` of the questions at even distances (files are sorted by subject)."""
    if limit is None or limit > len(questions):
        return list(questions)
    if limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    return [questions[i * len(questions) // limit] for i in range(limit)]


@contextmanager
def _undisturbed(model: "PreTrainedModel") -> Iterator[None]:
    """The model in eval mode; afterwards each layer's mode and all random generators are as before."""
    training = {layer: layer.training for layer in model.modules()}
    state = rng_state()
    model.eval()
    try:
        yield
    finally:
        for layer, mode in training.items():
            layer.training = mode
        set_rng_state(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back lm-eval's advice to its developers and its bar for the building of prompts."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with patch.object(lm_eval_task, "tqdm", lambda documents, **_: documents):
            yield
    finally:
        logger.setLevel(level)
