"""Retention by lm-eval on the live model: right numbers, one pass, and nothing of the model changed."""

import json
import logging
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from scipy.stats import binom
from tokenizers.processors import TemplateProcessing

from lit_rerank.backbone import BackboneSettings, load_backbone, load_model, load_tokenizer, trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.general_text import Document, shipped_documents
from lit_rerank.live_lm import LiveLM
from lit_rerank.measurement import Read, Retention
from lit_rerank.paired import paired
from lit_rerank.questions import (
    Question,
    QuestionsSource,
    first_of_each_subject,
    hub_questions,
    open_questions,
    shipped_questions,
    spread,
)
from lit_rerank.retention import CLOZE_TASK, LETTER_TASK, measure, mmlu_smoke
from tests.asked import adapted, by_hand, letter_prompt, logp
from tests.references import randomise

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
LM_EVAL = Path(str((find_spec("lm_eval") or pytest.fail("lm-eval is absent")).origin)).parent


def cloze_by_hand(model: Any, tokenizer: Any, question: Question) -> list[float]:
    """Log-likelihood per character of each choice."""
    subject = question.subject.replace("_", " ")
    prompt = f"The following are questions (with answers) about {subject}.\n\nQuestion: {question.question.strip()}\n"
    return [logp(model, tokenizer, f"{prompt}Answer:", f" {c}") / len(c) for c in question.choices]


def mmlu(model: Any, tokenizer: Any, questions: Sequence[Question], *more: Any, **options: Any) -> dict[str, Any]:
    return measure(model, tokenizer, questions, *more, **options).figures()


def accuracy(chosen: Sequence[int], questions: Sequence[Question]) -> float:
    return sum(answer == q.answer for answer, q in zip(chosen, questions, strict=True)) / len(questions)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_figures_are_those_of_a_plain_loop(tiny_model: Path, batch_size: int) -> None:
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    questions, documents = spread(shipped_questions(), 60), shipped_documents()[:3]
    chosen = by_hand(model, tokenizer, questions)
    cloze = [cloze_by_hand(model, tokenizer, question) for question in questions]
    figures = mmlu(model, tokenizer, questions, documents, batch_size=batch_size)
    right = [answer == question.answer for answer, question in zip(chosen, questions, strict=True)]
    named = [scores.index(max(scores)) == q.answer for scores, q in zip(cloze, questions, strict=True)]
    right_answers = [scores[q.answer] for scores, q in zip(cloze, questions, strict=True)]
    bits = [-logp(model, tokenizer, "<|im_start|>", d.text) / math.log(2) for d in documents]  # the token that begins
    assert figures == {
        "acc": accuracy(chosen, questions),
        "acc_stderr": pytest.approx(stdev(right) / 60**0.5),
        "acc_p_chance": pytest.approx(binom.sf(sum(right) - 1, 60, 0.25)),
        "acc_cloze": sum(named) / 60,
        "acc_cloze_stderr": pytest.approx(stdev(named) / 60**0.5),
        "acc_cloze_p_chance": pytest.approx(binom.sf(sum(named) - 1, 60, 0.25)),
        "answer_logprob": pytest.approx(fmean(right_answers), abs=1e-5),
        "answer_margin": pytest.approx(
            fmean((4 * r - sum(s)) / 3 for r, s in zip(right_answers, cloze, strict=True)), abs=1e-5
        ),
        "n": 60,
        "subjects": 57,
        "bits_per_byte": pytest.approx(sum(bits) / sum(len(d.text.encode()) for d in documents), abs=1e-5),
        "documents": 3,
        "truncated": 0,
    }
    # With the model's answers as the key (or all others), nothing can be right by accident.
    key = [Question(q.subject, q.question, q.choices, a) for q, a in zip(questions, chosen, strict=True)]
    assert mmlu(model, tokenizer, key, batch_size=batch_size)["acc"] == 1
    others = [Question(q.subject, q.question, q.choices, (q.answer + 1) % 4) for q in key]
    assert mmlu(model, tokenizer, others, batch_size=batch_size)["acc"] == 0


def test_examples_stand_before_a_question_as_in_lm_eval(tiny_model: Path, shared_data: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    dev = [q for q in QuestionsSource(shared_data / "mmlu" / "dev.jsonl.gz") if q.subject in ("anatomy", "virology")]
    examples = [q for subject in ("virology", "anatomy") for q in [d for d in dev if d.subject == subject][:2]]
    asked = [q for q in dev if q not in examples]
    found = measure(model, tokenizer, asked, examples=examples)
    for question, answered in zip(asked, found.questions, strict=True):
        head, body = letter_prompt(question).split("\n\n", 1)
        shown = [e for e in examples if e.subject == question.subject]
        worked = "".join(f"{letter_prompt(e).split(chr(10) * 2, 1)[1]} {'ABCD'[e.answer]}\n\n" for e in shown)
        scores = [logp(model, tokenizer, f"{head}\n\n{worked}{body}", f" {letter}") for letter in "ABCD"]
        assert answered.letters == pytest.approx(scores, abs=1e-4)
        head = head.replace("multiple choice ", "")
        worked = "".join(f"Question: {e.question.strip()}\nAnswer: {e.choices[e.answer]}\n\n" for e in shown)
        prompt = f"{head}\n\n{worked}Question: {question.question.strip()}\nAnswer:"
        cloze = [logp(model, tokenizer, prompt, f" {c}") / len(c) for c in question.choices]
        assert answered.cloze == pytest.approx(cloze, abs=1e-4)


def test_examples_must_be_others_and_of_the_subject(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    one, *_, other = shipped_questions()
    with pytest.raises(UserError, match=f"a question of {one.subject} is among the examples"):
        measure(model, tokenizer, [one], examples=[one])
    with pytest.raises(UserError, match=f"there is no example for the subject {other.subject}"):
        measure(model, tokenizer, [other], examples=[one])


def test_a_measurement_is_kept_in_a_file(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    found = measure(model, tokenizer, shipped_questions()[:3], [Document("Fleas live."), Document("Paris: où?")])
    assert (
        measure(model, tokenizer, shipped_questions()[:3], [Document("Fleas live."), Document("Paris: où?")]) == found
    )
    found.save(tmp_path / "items.jsonl")
    assert Retention.load(tmp_path / "items.jsonl") == found
    found.save(tmp_path / "items.jsonl.gz")
    assert (tmp_path / "items.jsonl.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert Retention.load(tmp_path / "items.jsonl.gz") == found
    broken = replace(found, documents=(Read("d", math.nan, 9),))
    with pytest.raises(UserError, match=r"cannot write .*none.jsonl: the model's log-likelihoods are no finite"):
        broken.save(tmp_path / "none.jsonl")
    asked, *_, read, _ = found.rows()
    broken_rows = [
        {"answer": 3},
        asked | {"answer": 9},
        asked | {"answer": "A"},
        asked | {"cloze": [-1.0, -2.0]},
        asked | {"letters": ["a", "b", "c", "d"]},
        asked | {"chance": "x"},
        read | {"bits": "x"},
        read | {"bytes": None},
    ]
    for row in broken_rows:
        (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match="holds no measurement of retention"):
            Retention.load(tmp_path / "items.jsonl")


def test_the_hubs_questions_are_read_from_a_directory_of_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cais/mmlu` as the hub has it: a folder a configuration, a Parquet file a split."""
    folder = tmp_path / "cais" / "mmlu" / "all"
    folder.mkdir(parents=True)
    dev = shipped_questions()[:10]
    test = [replace(question, question=f"Again: {question.question}") for question in dev]
    for split, questions in {"test": test, "dev": dev}.items():
        Dataset.from_list([question.as_dict() for question in questions]).to_parquet(folder / f"{split}-00000.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n"
        "  - {split: test, path: all/test-*}\n  - {split: dev, path: all/dev-*}\n---\n"
    )
    asked, examples = open_questions("hub", 2, limit=5)
    assert asked == spread(test, 5)
    assert examples == first_of_each_subject(dev, 2)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="cannot load cais/mmlu from the Hugging Face hub: "):
        hub_questions("validation")


def test_measurements_of_earlier_versions_can_still_be_compared() -> None:
    """They told what random bytes would cost, of documents not even that, and nothing of examples."""
    question = {"id": "q", "subject": "s", "letters": [0.0, -1.0, -2.0, -3.0], "cloze": [-1.0] * 4, "answer": 0}
    question |= {"chance": -6.0}
    asked = question | {"acc": 1.0, "acc_cloze": 1.0, "answer_logprob": -1.0}
    old = Retention.of_rows([asked, {"id": "d", "bits": 9.0, "bytes": 3}, {"truncated": 0}])
    new = Retention.of_rows([question, {"id": "d", "bits": 12.0, "bytes": 3, "chance": 30.0}, {"examples": ["e"]}])
    assert paired(old, new)["bits_per_byte"]["difference"] == 1
    assert (old.examples, new.examples) == (None, ("e",))


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="models/smollm2-135m-instruct is absent: run `make model`")
def test_accuracy_of_a_real_model_is_that_of_a_plain_loop() -> None:
    model, tokenizer = load_model(str(SMOLLM2), dtype="float32").eval(), load_tokenizer(str(SMOLLM2))
    questions = sorted(shipped_questions(), key=lambda q: len(q.question))[:12]
    chosen = by_hand(model, tokenizer, questions)
    key = [Question(q.subject, q.question, q.choices, a) for q, a in zip(questions, chosen, strict=True)]
    assert mmlu(model, tokenizer, questions)["acc"] == accuracy(chosen, questions)
    assert mmlu(model, tokenizer, key)["acc"] == 1


def test_log_probabilities_are_those_of_lm_eval_itself(tiny_model: Path) -> None:
    """HFLM as it is, and here, where a context is read once with all its continuations, and texts by themselves."""
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    model.config.max_position_embeddings = 600
    question = "How long do fleas live?"
    texts = [
        *(
            (question, end)
            for end in (" A hundred days.", " A hundred years, or", " A", " days " * 150, " days " * 170)
        ),
        *(("Fleas", " live"), ("Fleas " * 30, "!"), ("", "Paris"), ("Fleas " * 700, " live")),
    ]
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    ours = LiveLM(model, tokenizer, batch_size=3)
    # What is likeliest at each step, so that there is something for which that holds.
    written = model.generate(tokenizer(question, return_tensors="pt").input_ids, max_new_tokens=3, do_sample=False)
    texts.append((question, tokenizer.decode(written[0])[len(question) :]))
    requests = [_Request(text) for text in texts]
    expected, found = plain.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert ours.truncated == 1
    rolling = [_Request((text,)) for text in ("Fleas live.", "Fleas live for days. " * 90, "Paris")]
    expected = plain.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)


class _Request:
    def __init__(self, args: tuple[str, ...]) -> None:
        self.args, self.task_name, self.doc_id = args, None, None


def test_a_text_begins_with_one_token_where_the_tokenizer_begins_texts_by_itself(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)).eval(), load_tokenizer(str(tiny_model))
    text = "Fleas live for days."
    expected = logp(model, tokenizer, "<|im_start|>", text)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id
    found = measure(model, tokenizer, [], [Document(text)]).documents[0]
    assert -found.bits * math.log(2) == pytest.approx(expected, abs=1e-4)


def test_long_texts_and_many_short_ones_are_read_in_bounded_parts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    model.config.max_position_embeddings = 200
    texts = [Document(f"{'Fleas live. ' * n}{n}") for n in (1, 2, 3, 5, 40)] + [Document("Fleas live. 1")]
    whole = measure(model, tokenizer, [], texts)
    monkeypatch.setattr("lit_rerank.live_lm.MAX_ASKED", 30)
    places: list[int] = []
    model.register_forward_hook(lambda *call: places.append(call[-1].logits.shape[1]))
    read: list[int] = []
    parts = measure(model, tokenizer, [], texts, progress=read.append)
    assert max(places) <= 30 < sum(places)
    assert [d.bits for d in parts.documents] == pytest.approx([d.bits for d in whole.documents], rel=1e-5)
    assert sum(read) == len(texts)


def test_progress_counts_each_prompt_once(tiny_model: Path) -> None:
    """Also where two are alike, and where a long choice is read by itself."""
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    one = Question("s", "Why?", ("1", "2", "days " * 150, "4"), 0)
    read: list[int] = []
    measure(model, tokenizer, [one, one, Question("s", "Who?", one.choices, 1)], progress=read.append)
    assert sum(read) == 6


@pytest.mark.parametrize("subject", ["abstract_algebra", "high_school_us_history"])
@pytest.mark.parametrize(("form", "kind"), [(LETTER_TASK, "default"), (CLOZE_TASK, "continuation")])
def test_prompts_are_those_of_lm_evals_mmlu(subject: str, form: dict[str, Any], kind: str) -> None:
    folder = LM_EVAL / "tasks" / "mmlu" / kind
    theirs = yaml.safe_load((folder / f"_{kind}_template_yaml").read_text())
    for name in ("output_type", "doc_to_text", "doc_to_choice", "doc_to_target"):
        assert form[name] == theirs[name]
    description = yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text())["description"]
    document = Question(subject, " Why?\n", ("1", "2", "3", "4"), 1).as_dict()
    task = ConfigurableTask(config=form | {"custom_dataset": lambda: {"test": _Documents([document])}})
    prompt = task.fewshot_context(document, num_fewshot=0)
    asked = {"default": "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "continuation": "Question: Why?\nAnswer:"}
    assert prompt == description + asked[kind]


class _Documents(list[dict[str, Any]]):
    features = dict.fromkeys(["subject", "question", "choices", "answer"])


def test_each_prompt_is_read_once_and_logits_only_where_something_is_asked(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    forwards, places = [], []
    model.register_forward_hook(lambda *call: forwards.append(len(call[-1].logits)))
    model.register_forward_hook(lambda *call: places.append(call[-1].logits.shape[1]))
    read: list[int] = []
    questions = spread(shipped_questions(), 10)
    measure(model, tokenizer, questions, [Document("Fleas live.")], batch_size=1, progress=read.append)
    assert forwards == read == [1] * 21
    lengths = [[len(tokenizer(f" {choice}").input_ids) for choice in q.choices] for q in questions]
    assert sum(places) <= sum(map(sum, lengths)) + 10 * len(tokenizer(" A").input_ids) * 4 + 20


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


def test_four_bit_layers_have_the_gradients_that_they_had(tiny_model: Path) -> None:
    """After a forward in eval mode bitsandbytes' layers would repack themselves on some processors."""
    model: Any = load_backbone(BackboneSettings(str(tiny_model), load_in_4bit=True))
    randomise(model, seed=1)
    tokenizer = load_tokenizer(str(tiny_model))
    ids = tokenizer("How long do fleas live? A hundred days.", return_tensors="pt").input_ids

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in trainable_parameters(model).values()]

    before = gradients()
    measure(model, tokenizer, shipped_questions()[:2], [Document("Fleas live.")])
    assert all(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))
    assert any(gradient.any() for gradient in before)


def test_modes_are_restored_after_an_error_too(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model)).train(), load_tokenizer(str(tiny_model))

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    level = logging.getLogger("lm_eval").level
    with pytest.raises(KeyboardInterrupt):
        measure(model, tokenizer, spread(shipped_questions(), 2), progress=stop)
    assert all(layer.training for layer in model.modules())
    assert logging.getLogger("lm_eval").level == level


def test_prompts_beyond_the_context_are_counted(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    questions = [Question("s", "why? " * n, ("1", "2", "3", "4"), 0) for n in (1, 400)]
    model.config.max_position_embeddings = 1000
    assert mmlu(model, tokenizer, questions)["truncated"] == 2  # in both forms
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
