"""`evaluate.py mmlu`: what a model still knows, and what training has cost it."""

import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import keep_apart, report
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.questions import SHIPPED, open_questions


def answer_mmlu(
    model: str,
    metrics: str,
    adapter: str | None = None,
    questions: str = SHIPPED,
    fewshot: int | str | None = None,
    limit: int | None = None,
    text: str | None = None,
    paired: bool = False,
    against: str | None = None,
    details: str | None = None,
    tasks: Sequence[str] = (),
    include_path: str | None = None,
    batch_size: int = 4,
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    logdir: str | None = None,
) -> dict[str, Any]:
    """Measure what a model still knows, by lm-eval: MMLU as letters and as cloze, and bits per byte of text.

    Args:
        model: Hugging Face id or directory.
        metrics: the JSON file to write.
        adapter: PEFT adapter directory.
        questions: JSONL(.gz), a question a line: {"subject", "question", "choices": [4 strings], "answer": 0-3};
            `hub`: MMLU's 14,042 test questions from Hugging Face; `shipped`: the 281 dev questions that lm-eval holds,
            a smoke test and not MMLU's figure.
        fewshot: answered questions of the same subject before each question: a file of them, laid out as questions
            are, or how many of the dev questions (of the hub, or those shipped); by default none.
        limit: only so many questions, spread evenly over all; with tasks, the first so many documents of each.
        text: also measure bits per byte of these documents: {"text"} a line of .jsonl(.gz), or the paragraphs of any
            other file; `shipped`: explanations on 57 subjects that lm-eval holds. With paired, by default shipped.
        paired: measure the base too (adapter off, same weights, same questions) and what has changed, with intervals.
        against: what --details of an earlier run has written: what has changed since, with intervals.
        details: JSONL(.gz) to write each question's and document's figures to; by default beside the metrics. With
            paired, the base's are written beside them: x.base.jsonl beside x.jsonl.
        tasks: instead of these questions: lm-eval's tasks or groups by name, with its own figures (fewshot: a number,
            which tasks that fix their own do not take: n-shot tells).
        include_path: a folder with lm-eval task files of your own.
        batch_size: prompts read at a time; on a CPU, few are fast.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
        logdir: a TensorBoard directory for the figures.
    """
    if paired and (adapter is None or against is not None):
        raise UserError("paired compares an adapter with its base: it needs --adapter, and no --against")
    if tasks and (paired or against or text or details or isinstance(fewshot, str) or questions != SHIPPED):
        raise UserError("tasks are lm-eval's own business: with them go --fewshot NUMBER, --limit and --include_path")
    if include_path and not tasks:
        raise UserError("include_path is for --tasks")
    kept = details or str(Path(metrics).parent / f"{Path(metrics).stem}.details.jsonl")  # tasks write none
    of_base = re.sub(r"(\.jsonl)?(\.gz)?\Z", r".base\g<0>", kept, count=1) if paired else None
    examples_of = fewshot if isinstance(fewshot, str) else None
    written = {"metrics": metrics, "details": None if tasks else kept, "details of the base": of_base}
    keep_apart(written, [against, questions, text, examples_of])

    from lit_rerank.backbone import load_for_inference, load_tokenizer
    from lit_rerank.general_text import open_documents
    from lit_rerank.lm_eval_tasks import lm_eval_tasks
    from lit_rerank.measurement import Retention
    from lit_rerank.paired import check_same, flat
    from lit_rerank.paired import paired as differences
    from lit_rerank.retention import measure
    from lit_rerank.scale import check_base_is_kept

    earlier = None if against is None else Retention.load(against)
    asked, examples = ([], []) if tasks else open_questions(questions, fewshot, limit)
    read = open_documents(text or (SHIPPED if paired else None))
    if earlier is not None:
        check_same(earlier, asked, read, tuple(example.id for example in examples))
    tokenizer = load_tokenizer(model, trust_remote_code)
    loaded: Any = load_for_inference(
        model, adapter, load_in_4bit=load_in_4bit, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if paired:
        check_base_is_kept(loaded, "measure that alone")
    started = time.perf_counter()
    if tasks:
        shots = fewshot if isinstance(fewshot, int) else None
        found = lm_eval_tasks(loaded, tokenizer, tasks, shots, limit, include_path, batch_size)
        result: dict[str, Any] = {
            f"{task}.{name}": value for task, figures in found.items() for name, value in figures.items()
        }
        result["seconds"] = round(time.perf_counter() - started, 2)
        report(result, metrics)
        to_tensorboard(logdir, "mmlu", result)
        return result
    with progress_bar("prompts", (2 * len(asked) + len(read)) * (2 if paired else 1)) as advance:

        def measured() -> Retention:
            return measure(loaded, tokenizer, asked, read, examples, batch_size, advance)

        after = measured()
        if paired:
            with loaded.disable_adapter():
                earlier = measured()
    result = {"questions": f"lm-eval {version('lm-eval')}" if questions == SHIPPED else questions, **after.figures()}
    if earlier is not None:
        result |= {f"base.{name}": value for name, value in earlier.figures().items()}
        result |= flat(differences(earlier, after))
    result |= {"fewshot": fewshot or 0, "details": kept, "seconds": round(time.perf_counter() - started, 2)}
    after.save(kept)
    if of_base is not None and earlier is not None:
        earlier.save(of_base)
    report(result, metrics)  # last: where there are metrics, all is there
    to_tensorboard(logdir, "mmlu", result)
    return result
