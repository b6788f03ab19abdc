"""What the tests of retention share: questions asked by hand, and a model that has learned something."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from lit_rerank.backbone import load_model
from lit_rerank.questions import Question


def logp(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """Of a continuation, the whole text read by itself, in nats."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
    with torch.no_grad():
        logps = model(ids).logits[0].float().log_softmax(-1)
    return sum(logps[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


def letter_prompt(question: Question) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", question.choices, strict=True))
    subject = question.subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return f"{head}{question.question.strip()}\n{choices}Answer:"


def by_hand(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[int]:
    """The likeliest letter of each question."""
    chosen = []
    for question in questions:
        scores = [logp(model, tokenizer, letter_prompt(question), f" {letter}") for letter in "ABCD"]
        chosen.append(scores.index(max(scores)))
    return chosen


def adapted(directory: Path, **lora: Any) -> Any:
    """A model with an adapter that has learned something (at random)."""
    torch.manual_seed(3)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, **({"target_modules": "all-linear"} | lora))
    model = get_peft_model(load_model(str(directory)), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.5)
    return model.eval()
