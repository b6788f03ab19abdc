"""`evaluate.py mmlu`: what a model still knows."""

import time
from importlib.metadata import version
from typing import Any

from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import make_way, progress_bar, report


def answer_mmlu(
    model: str,
    metrics: str,
    adapter: str | None = None,
    questions: str | None = None,
    limit: int | None = None,
    batch_size: int = 4,
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure what a model still knows: accuracy on MMLU questions, scored by lm-eval.

    Args:
        model: Hugging Face id or directory.
        metrics: the JSON file to write.
        adapter: PEFT adapter directory.
        questions: JSONL(.gz), a question a line: {"subject", "question", "choices": [4 strings], "answer": 0-3}; by
            default the 281 dev questions that lm-eval ships, a smoke test and not MMLU's figure.
        limit: only so many questions, spread evenly over all.
        batch_size: questions read at a time; on a CPU, few are fast.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
    """
    from lit_rerank.backbone import load_for_inference, load_tokenizer
    from lit_rerank.questions import QuestionsSource, shipped_questions
    from lit_rerank.retention import mmlu, spread

    asked = list(QuestionsSource(questions)) if questions else shipped_questions()
    if not asked:
        raise UserError(f"{questions} holds no question")
    asked = spread(asked, limit)
    make_way(metrics)
    tokenizer = load_tokenizer(model, trust_remote_code)
    loaded = load_for_inference(
        model, adapter, load_in_4bit=load_in_4bit, dtype=dtype, trust_remote_code=trust_remote_code
    )
    started = time.perf_counter()
    with progress_bar("questions", len(asked)) as advance:
        figures = mmlu(loaded, tokenizer, asked, batch_size, progress=advance)
    seconds = round(time.perf_counter() - started, 2)
    result = {"questions": questions or f"lm-eval {version('lm-eval')}", **figures, "seconds": seconds}
    report(result, metrics)
    return result
