"""`evaluate.py rerank`: a candidates file in, a TREC run and its measures out.

What needs torch is imported by the functions that use it: `--help` reads this module's signatures alone.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_modules.records import RankingRecord, Window
from data_modules.sources import CandidatesSource
from data_modules.trec import check_writable, write_run
from lit_rerank.backbone import DType
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from lit_rerank.decoding import Decoded
    from lit_rerank.reranker import Ranking, Reranker


def rerank_candidates(
    model: str,
    candidates: str,
    run: str,
    metrics: str,
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
        candidates: JSONL(.gz), one query a line: {"qid", "query", "candidates": [{"docid", "text", "score"}]}.
        run: the TREC run to write.
        metrics: the JSON file to write.
        adapter: PEFT adapter directory.
        qrels: TREC judgements; without them nothing is measured but time and malformed answers.
        format: chain or direct; by default what the adapter was trained with, else chain.
        window: passages in one prompt.
        stride: how far the window moves up each time.
        depth: candidates reranked per query, from the top.
        max_passage_tokens: each passage is cut to so many tokens; by default as in training, else not at all.
        repeat_identifier: write each passage's identifier after it, too; by default as in training, else not.
        queries: only the first so many queries of the file.
        measures: by ir-measures' names.
        batch_size: windows generated at a time.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
    """
    from lit_rerank.metrics import parse_measure
    from lit_rerank.reranker import Reranker, SlidingWindow

    parsed = [parse_measure(name) for name in measures]
    sliding = SlidingWindow(window, stride, depth)
    if queries is not None and queries < 1:
        raise UserError(f"queries is {queries}; it must be at least 1")
    records = list(CandidatesSource(candidates, qrels))[:queries]
    if not records:
        raise UserError(f"{candidates} holds no query")
    check_writable(records)
    judged = sum(record.qrels is not None for record in records)
    if qrels is not None and not judged:
        raise UserError(
            f"{qrels} judges none of the {len(records)} queries of {candidates}: are they of one collection?"
        )
    for path in (run, metrics):
        if Path(path).is_dir():
            raise UserError(f"{path} is a directory; name a file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
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
    Path(metrics).write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    return result


def _with_progress(records: Sequence[RankingRecord], reranker: "Reranker") -> "list[Ranking]":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from lit_rerank.reranker import rerank

    total = sum(len(reranker.sliding.spans(len(record.passages))) for record in records)
    columns = (TextColumn("windows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("windows", total=total)

        def decode(windows: Sequence[Window]) -> "Sequence[Decoded]":
            return reranker.generator(windows, progress=lambda count: progress.advance(bar, count))

        return rerank(records, decode, reranker.sliding)


def _measured(rankings: "Sequence[Ranking]", measures: Sequence[Any]) -> dict[str, float]:
    """Means over the judged queries of the reranked lists and of the first stage's own order."""
    from lit_rerank.metrics import means, per_query

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
