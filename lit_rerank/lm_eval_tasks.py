"""Any of lm-eval's tasks on the model that is loaded."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate

from lit_rerank.errors import UserError
from lit_rerank.live_lm import LiveLM, undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEED = 1234  # lm-eval's own


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
        UserError: if there is no such folder or task, if its data cannot be had, or if lm-eval cannot run it.
    """
    from lm_eval.tasks import TaskManager

    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"fewshot is {num_fewshot}; it must be 0 or more")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"include_path: {include_path} is no directory")
    with undisturbed(model):
        manager = TaskManager(include_path=include_path)
        unknown = [name for name in names if name not in manager.all_tasks]
        if unknown:
            where = "" if include_path is None else f", nor is one in {include_path} (what is no YAML is not read)"
            raise UserError(f"lm-eval has no task {unknown[0]!r}{where}; `lm_eval ls tasks` lists its own")
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
