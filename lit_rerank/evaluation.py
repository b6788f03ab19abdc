"""The functions behind `evaluate.py`: rerank writes a TREC run and its measures, mmlu what the model still knows."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data_modules.catalogue import open_collection
from data_modules.first_stage import open_first_stage
from data_modules.records import RankingRecord, Window
from data_modules.sources.detect import open_candidates
from data_modules.trec import check_writable, read_qrels, write_run
from lit_rerank.backbone import DType, load_model, load_tokenizer
from lit_rerank.decoding import Decoded
from lit_rerank.errors import UserError
from lit_rerank.metrics import means, parse_measure, per_query
from lit_rerank.reranker import Ranking, Reranker, SlidingWindow, rerank


def rerank_candidates(
    model: str,
    run: str,
    metrics: str,
    candidates: str | None = None,
    first_stage: str | None = None,
    collection: str | None = None,
    adapter: str | None = None,
    qrels: str | None = None,
    format: Literal["chain", "direct"] | None = None,
    window: int = 20,
    stride: int = 10,
    depth: int = 100,
    max_passage_tokens: int | None = None,
    repeat_identifier: bool | None = None,
    queries: int | None = None,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    batch_size: int = 8,
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Rerank first-stage candidates with a model and measure the result.

    Args:
        model: Hugging Face id or directory.
        run: the TREC run to write.
        metrics: the JSON file to write.
        candidates: a file of them: {"qid", "query", "candidates": [{"docid", "text", "score"}]} a line, the project's
            own records, or RankLLM's requests.
        first_stage: instead of candidates: what retrieves them from the collection (bm25).
        collection: what the first stage searches: pydocs, pydocs/train, pydocs/test, a directory in BEIR's or
            Cranfield's layout, or ir_datasets:ID.
        adapter: PEFT adapter directory.
        qrels: TREC judgements, by default the collection's; without any, nothing is measured but time and malformed
            answers.
        format: chain or direct; by default what the adapter was trained with, else chain.
        window: passages in one prompt.
        stride: how far the window moves up each time.
        depth: candidates retrieved and reranked per query; of a file's, those from the top.
        max_passage_tokens: each passage is cut to so many tokens; by default as in training, else not at all.
        repeat_identifier: write each passage's identifier after it, too; by default as in training, else not.
        queries: only the first so many queries.
        measures: by ir-measures' names.
        batch_size: windows generated at a time.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
    """
    parsed = [parse_measure(name) for name in measures]
    sliding = SlidingWindow(window, stride, depth)
    if queries is not None and queries < 1:
        raise UserError(f"queries is {queries}; it must be at least 1")
    records = _lists(candidates, first_stage, collection, depth, queries)
    if qrels is not None:
        grades = read_qrels(qrels)
        records = [replace(record, qrels=grades.get(record.qid)) for record in records]
    check_writable(records)
    judged = sum(record.qrels is not None for record in records)
    if qrels is not None and not judged:
        raise UserError(
            f"{qrels} judges none of the {len(records)} queries of {candidates or collection}: "
            "are they of one collection?"
        )
    for path in (run, metrics):
        _make_way(path)
    reranker = Reranker.from_pretrained(
        model,
        adapter,
        format=format,
        max_passage_tokens=max_passage_tokens,
        repeat_identifier=repeat_identifier,
        sliding=sliding,
        batch_size=batch_size,
        dtype=dtype,
        load_in_4bit=load_in_4bit,
        trust_remote_code=trust_remote_code,
    )
    started = time.perf_counter()
    rankings = _with_progress(records, reranker)
    seconds = time.perf_counter() - started
    write_run({ranking.record.qid: ranking.run for ranking in rankings}, run, tag="lit-rerank")
    result = {
        **_measured(rankings, parsed),
        "queries": len(records),
        "judged_queries": judged,
        "windows": sum(len(ranking.decoded) for ranking in rankings),
        "malformed": sum(ranking.malformed for ranking in rankings),
        "seconds": round(seconds, 2),
    }
    _report(result, metrics)
    return result


def _lists(
    candidates: str | None, first_stage: str | None, collection: str | None, depth: int, queries: int | None
) -> list[RankingRecord]:
    """The first-stage lists of a file, or those that a first stage retrieves from a collection."""
    if candidates is not None and first_stage is None and collection is None:
        records = list(open_candidates(candidates))[:queries]
    elif candidates is None and first_stage is not None and collection is not None:
        opened = open_collection(collection)
        chosen = dict(islice(opened.queries.items(), queries))
        records = open_first_stage(first_stage, opened).search(chosen, depth) if chosen else []
    else:
        raise UserError("name either --candidates FILE, or --first_stage NAME together with --collection NAME")
    if not records:
        raise UserError(f"{candidates or collection} holds no query")
    return records


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
    import torch

    from lit_rerank.questions import QuestionsSource, shipped_questions
    from lit_rerank.retention import mmlu, spread

    asked = list(QuestionsSource(questions)) if questions else shipped_questions()
    if not asked:
        raise UserError(f"{questions} holds no question")
    asked = spread(asked, limit)
    _make_way(metrics)
    tokenizer = load_tokenizer(model, trust_remote_code)
    loaded = load_model(
        model, adapter, load_in_4bit=load_in_4bit, dtype=dtype, trust_remote_code=trust_remote_code
    ).eval()
    if not load_in_4bit:
        loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    with _progress("questions", len(asked)) as advance:
        figures = mmlu(loaded, tokenizer, asked, batch_size, progress=advance)
    seconds = round(time.perf_counter() - started, 2)
    result = {"questions": questions or f"lm-eval {version('lm-eval')}", **figures, "seconds": seconds}
    _report(result, metrics)
    return result


def _make_way(path: str) -> None:
    """Notice before the work that a file cannot be written."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a directory; name a file")
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def _report(result: dict[str, Any], path: str) -> None:
    """Write the figures as JSON, and print the same."""
    Path(path).write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and what moves it on."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


def _with_progress(records: Sequence[RankingRecord], reranker: Reranker) -> list[Ranking]:
    total = sum(len(reranker.sliding.spans(len(record.passages))) for record in records)
    with _progress("windows", total) as advance:

        def decode(windows: Sequence[Window]) -> Sequence[Decoded]:
            return reranker.generator(windows, progress=advance)

        return rerank(records, decode, reranker.sliding)


def _measured(rankings: Sequence[Ranking], measures: Sequence[Any]) -> dict[str, float]:
    """Means over the judged queries of the reranked lists and of the first stage's own order."""
    judged = {r.record.qid: r.record.qrels for r in rankings if r.record.qrels}
    if not judged:
        return {}
    reranked = {ranking.record.qid: ranking.run for ranking in rankings}
    first_stage = {
        ranking.record.qid: [(passage.docid, -float(rank)) for rank, passage in enumerate(ranking.record.passages)]
        for ranking in rankings
    }
    first = means(per_query(first_stage, judged, measures))
    return {**means(per_query(reranked, judged, measures)), **{f"first_stage.{name}": v for name, v in first.items()}}
