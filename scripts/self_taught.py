"""Windows, conversations and texts that an untaught model makes for itself, of passages alone.

It asks a question that a passage answers (InPars, Bonifacio et al. 2022): a collection of judged questions. BM25 finds
other passages for the question, and the model orders them all by how likely the question is after each (UPR, Sachan et
al. 2022): a listwise model learns from these windows what the same model knows when it reads passage by passage.
What it answers to questions, and passages and questions as plain text, are to be replayed against forgetting.
"""

import argparse
import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from data_modules.collection import Collection, Document
from data_modules.first_stage import Bm25
from data_modules.records import Passage, RankingRecord
from data_modules.sources.base import write_rows
from data_modules.sources.corpus import DocumentsSource, QueriesSource
from data_modules.sources.own import write_jsonl
from lit_rerank.backbone import load_for_inference, load_tokenizer
from lit_rerank.chat import ChatTokenizer
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.reading import SlidingWindow
from lit_rerank.reference import identity
from lit_rerank.reranker import Reranker
from scripts.recipes import dtype

EXAMPLES = {  # passages, and what people type to find them
    "Adult cat fleas live for about a hundred days on a host, but only a few days without one.": (
        "how long do fleas live"
    ),
    "A lien is a legal claim on someone's property, held until what they owe has been paid.": "what is a lien",
    "The Tay, which rises on Ben Lui and reaches the sea at Dundee, is Scotland's longest river.": (
        "longest river in scotland"
    ),
    "Bread dough rises because yeast turns sugar into carbon dioxide, which gluten keeps inside.": (
        "why does dough rise"
    ),
}
T = TypeVar("T")
SHOWN_WORDS, FEWEST_WORDS = 60, 15
NEAR = 30  # others are drawn from as many of BM25's best
QUESTION_TOKENS, ANSWER_TOKENS = 20, 128
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--passages", type=Path, required=True, help="JSONL of docid and text")
    parser.add_argument("--out", type=Path, required=True, help="folder; questions that are there are kept")
    parser.add_argument("--questions", type=int, default=4000, help="passages to ask about")
    parser.add_argument("--windows", type=int, default=1000, help="questions whose passages are ordered")
    parser.add_argument("--size", type=int, default=8, help="passages in a window")
    args = parser.parse_args()
    if min(args.questions, args.windows) < 1 or not 2 <= args.size <= NEAR:
        raise UserError(f"questions {args.questions}, windows {args.windows}: 1 or more; size {args.size}: 2 to {NEAR}")
    make(args.model, args.passages, args.out, args.questions, args.windows, args.size)


def make(
    model: str, passages: Path, out: Path, asked_about: int, windows: int, size: int = 8, answers: int = 640
) -> None:
    """Write a collection of questions, replay.jsonl.gz and windows.jsonl.gz into `out`, each unless it is there.

    Args:
        answers: so many questions are asked, and what the model answers in ANSWER_TOKENS or less is taken; a third as
            many passages stand beside them as they are, and as many again with the question about them.
    """
    check_same(model, out)
    collection = unlike(passages)
    if len(collection.documents) < size:
        raise UserError(
            f"{passages} has {len(collection.documents)} different passages of {FEWEST_WORDS} words; {size} are needed"
        )
    if not (path := out / "queries.jsonl.gz").exists():
        write_rows(asked(model, collection, asked_about), path)
    questions = dict(QueriesSource(path))
    if not (path := out / "docs.jsonl.gz").exists():
        write_rows(({"docid": d.docid, "text": d.text} for d in collection.documents.values()), path)
    if not (path := out / "qrels.txt").exists():
        path.write_text("".join(f"{docid} 0 {docid} 1\n" for docid in questions))
    if not (path := out / "replay.jsonl.gz").exists():
        some = dict(random.Random(0).sample(list(questions.items()), min(answers, len(questions))))
        texts = [collection.documents[docid].text for docid in some][: -(-answers // 3)]
        plain, chats = [*texts, *map(asking, texts, some.values())], answered(model, list(some.values()))
        write_rows([*chats, *({"text": text} for text in plain)], path)
        print(f"{path}: {len(chats)} chats and {len(plain)} texts")
    if not (path := out / "windows.jsonl.gz").exists():
        qids = random.Random(0).sample(list(questions), min(windows, len(questions)))
        write_jsonl(ordered(model, searched({qid: questions[qid] for qid in qids}, collection, size), size), path)


def check_same(model: str, out: Path) -> None:
    """Raise a UserError where a folder holds what another model has made; an empty one is this one's from now on."""
    out.mkdir(parents=True, exist_ok=True)
    note, own = out / "made_by.txt", identity(model)
    if any(out.iterdir()) and not (note.exists() and note.read_text().strip() == own):
        raise UserError(f"{out} holds what another model than {model} made: remove it, or name another folder")
    note.write_text(f"{own}\n")


def unlike(passages: Path) -> Collection:
    """The passages that are long enough to be asked about, each text once."""
    texts: dict[str, Document] = {}
    for document in DocumentsSource(passages):
        if len(document.text.split()) >= FEWEST_WORDS:
            texts.setdefault(document.text, document)
    return Collection(passages.name, {document.docid: document for document in texts.values()})


def batched(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


# -- asking and answering ------------------------------------------------------------------------------------------


def asked(model: str, collection: Collection, wanted: int) -> list[dict[str, str]]:
    """A question, as people type them, about each of `wanted` passages; its qid is the passage's docid."""
    chosen = random.Random(0).sample(list(collection.documents.values()), min(wanted, len(collection.documents)))
    chosen.sort(key=lambda document: len(document.text))  # little padding
    written = continued(model, [prompt(d.text) for d in chosen], "questions", QUESTION_TOKENS, after=shots())
    questions = zip(chosen, map(cleaned, written), strict=True)
    return [{"qid": document.docid, "query": question} for document, question in questions if question]


def answered(model: str, questions: Sequence[str]) -> list[dict[str, Any]]:
    """Conversations in which the model answers, those that it ended: cut anywhere, they would teach it to end early."""
    chat = ChatTokenizer(load_tokenizer(model))
    prompts = [chat.render([{"role": "user", "content": f"{question}?"}]) for question in questions]
    written = continued(model, prompts, "answers", ANSWER_TOKENS, do_sample=True, top_k=0)
    answers = [text.partition(chat.end_of_turn) for text in written]
    return [
        {"messages": [{"role": "user", "content": f"{question}?"}, {"role": "assistant", "content": answer.strip()}]}
        for question, (answer, end, _) in zip(questions, answers, strict=True)
        if end and answer.strip()
    ]


def asking(text: str, question: str) -> str:
    """A passage and the question that the model asked about it, as plain text."""
    return f"Passage:{prompt(text)} {question}"


def continued(model: str, prompts: Sequence[str], what: str, length: int, after: str = "", **how: Any) -> list[str]:
    """What the model writes after each prompt, greedily by default, and its end; what all come `after` is read once."""
    import torch
    from transformers import DynamicCache, GenerationConfig, set_seed

    set_seed(0)
    loaded: Any = load_for_inference(model, dtype=dtype())
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "left"
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GenerationConfig(max_new_tokens=length, **({"do_sample": False} | how), **ends)

    def read(texts: Sequence[str]) -> Any:
        return tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False).to(loaded.device)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    if any(ids(after) + ids(text) != ids(after + text) for text in prompts):  # by this tokenizer they grow together
        prompts, after = [after + text for text in prompts], ""
    written: list[str] = []
    with progress_bar(what, len(prompts)) as advance, torch.inference_mode():
        before, cache = (read([after]), DynamicCache()) if after else ({}, None)
        if after:
            loaded(**before, past_key_values=cache)
        for some in batched(prompts):
            asked, known = read(some), copy.deepcopy(cache)
            if known is not None:
                known.batch_repeat_interleave(len(some))
                asked = {name: torch.cat([before[name].expand(len(some), -1), asked[name]], dim=1) for name in before}
            answers = loaded.generate(**asked, past_key_values=known, generation_config=config)
            written += tokenizer.batch_decode(answers[:, asked["input_ids"].shape[1] :], skip_special_tokens=False)
            advance(len(some))
    return written


def shots() -> str:
    """Passages with their questions, and the beginning of another; cut where tokens are the same as of the whole."""
    return (
        "".join(f"Passage: {passage}\nQuestion: {question}\n\n" for passage, question in EXAMPLES.items()) + "Passage:"
    )


def prompt(text: str) -> str:
    """A passage whose question is missing, to come after `shots`."""
    return f" {' '.join(text.split()[:SHOWN_WORDS])}\nQuestion:"


def cleaned(answer: str) -> str:
    """The first line, as a query; empty where it is too short or goes on."""
    first, newline, _ = answer.strip().partition("\n")
    return first.strip().rstrip("?").strip() if newline and len(first.split()) >= 3 else ""


# -- ordering ------------------------------------------------------------------------------------------------------


def searched(questions: dict[str, str], collection: Collection, size: int) -> Iterator[RankingRecord]:
    """Each question with its passage among others that BM25 finds, in random order."""
    bm25 = Bm25(collection)
    for docid, question in questions.items():
        draw = random.Random(docid)
        near = [passage for passage in bm25.neighbours(question, NEAR) if passage.docid != docid]
        own = collection.documents[docid].passage
        yield RankingRecord(docid, question, tuple(draw.sample([own, *draw.sample(near, size - 1)], size)))


def ordered(model: str, records: Iterable[RankingRecord], size: int) -> Iterator[RankingRecord]:
    """The records with the order in which their passages make the question likely."""
    reranker = Reranker.from_pretrained(
        model,
        decode="likelihood",
        max_passage_tokens=60,
        dtype=dtype(),
        reading=SlidingWindow(window=size, stride=1, depth=size),
    )
    everything = list(records)
    with progress_bar("windows", len(everything)) as advance:
        for some in batched(everything):
            for ranking in reranker.reading.rerank(some, reranker.decoder):
                passages = tuple(Passage(p.docid, p.text) for p in ranking.record.passages)
                order = tuple(index + 1 for index in ranking.order)
                yield replace(ranking.record, passages=passages, permutation=order)
            advance(len(some))


if __name__ == "__main__":
    in_one_line(main)
