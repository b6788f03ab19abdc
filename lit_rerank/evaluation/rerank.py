"""`evaluate.py rerank`: candidates or a collection in, a TREC run and its measures out.

What needs torch is imported by the functions that use it: `--help` reads this module's signatures alone.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, cast

from data_modules.choices import WindowChoices, write_choices
from data_modules.records import RankingRecord, Window
from data_modules.trec import write_run
from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.evaluation.lists import judged_lists
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import keep_apart, report
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.ways import MAX_BATCH_TOKENS, How

if TYPE_CHECKING:
    from lit_rerank.decoder import Decoded, Decoder
    from lit_rerank.ranking import Ranking
    from lit_rerank.reranker import Reranker


def rerank_candidates(
    model: str,
    run: str,
    metrics: str,
    candidates: str | None = None,
    first_stage: str | None = None,
    collection: str | None = None,
    adapter: str | None = None,
    qrels: str | None = None,
    decode: How | None = None,
    format: Literal["chain", "direct"] | None = None,
    window: int | None = None,
    stride: int | None = None,
    depth: int = 100,
    top_k: int | None = None,
    rounds: int | None = None,
    max_passage_tokens: int | None = None,
    repeat_identifier: bool | None = None,
    sanitise: bool | None = None,
    queries: int | None = None,
    shuffle: int | None = None,
    choices: str | None = None,
    first_stage_run: str | None = None,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    self_consistency: int = 1,
    aggregate: Literal["kemeny", "borda"] = "kemeny",
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    logdir: str | None = None,
) -> dict[str, Any]:
    """Rerank first-stage candidates with a model and measure the result.

    Args:
        model: Hugging Face id or directory.
        run: the TREC run to write.
        metrics: the JSON file to write.
        candidates: a file of them: {"qid", "query", "candidates": [{"docid", "text", "score"}]} a line, the project's
            own records, or RankLLM's requests.
        first_stage: instead of candidates: what retrieves them from the collection (bm25, pyserini).
        collection: what the first stage searches: pydocs, pydocs/train, pydocs/val, pydocs/test, a directory in BEIR's
            or Cranfield's layout, ir_datasets:ID, or pyserini:INDEX@TOPICS.
        adapter: PEFT adapter directory.
        qrels: TREC judgements, by default the collection's; without any, nothing is measured but time (and
            malformed answers of plain generation).
        decode: chain or direct, by default as the format is: each choice is the model's, among what remains, and
            nothing else (well-formed by construction, fast); first: by the scores of the first choice (fastest);
            likelihood: by how likely the query is after each passage alone, which an untaught model can do; generate:
            plain generation, read with tolerance (slow).
        format: what the prompt asks for, chain or direct; by default as decode says, or what the adapter was trained
            with, else chain.
        window: passages in one prompt; by default what the adapter (or the fully fine-tuned model) keeps, else
            20.
        stride: how far the window moves up each time; by default, where neither window nor rounds are named, as then;
            else, where no rounds are named, half the window.
        depth: candidates retrieved and reranked per query; of a file's, those from the top.
        top_k: only the order of the best so many matters, which is the same and comes faster; by default all.
        rounds: without stride: instead of sliding, each list is dealt at random into windows so many times over, and
            ordered by the strengths that best explain all windows' first choices (decode first). With stride: after
            sliding, the best 20 are read again so, in half as large windows (of 2 at least), and both orders are fused
            by reciprocal ranks. top_k and self_consistency are refused. By default, where neither window nor stride
            are named, what the adapter keeps.
        max_passage_tokens: each passage is cut to so many tokens; by default as in training, else not at all.
        repeat_identifier: write each passage's identifier after it, too; by default as in training, else not.
        sanitise: take out of passages what could be taken for more than text, against prompt injection; by default as
            in training, else not.
        queries: only the first so many queries.
        shuffle: a seed; the model sees each list (down to depth) in random order, so that it cannot lean on the first
            stage's.
        choices: a JSONL(.gz) file to write, for compare: what was chosen in each window, and how surely.
        first_stage_run: a TREC run to write of the lists as they were, for compare.
        measures: by ir-measures' names.
        max_batch_tokens: so many tokens are decoded at a time.
        self_consistency: above 1, each window is read in so many random orders, and the orders are made one.
        aggregate: how: kemeny (least disagreement, exact) or borda (mean rank).
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
        logdir: a TensorBoard directory for the figures.
    """
    from lit_rerank.as_trained import reading_as_asked
    from lit_rerank.measures import parse_measures
    from lit_rerank.reranker import Reranker

    parsed = parse_measures(measures)
    reading = reading_as_asked(adapter or model, window, stride, depth, top_k, rounds)
    if choices is not None and self_consistency > 1:
        raise UserError("choices are those of one reading; with self_consistency there are several of each window")
    written = {"run": run, "metrics": metrics, "choices": choices, "first_stage_run": first_stage_run}
    keep_apart(written, (candidates, collection, qrels))
    lists = judged_lists(candidates, first_stage, collection, qrels, depth, queries)
    records = lists.records
    reranker = Reranker.from_pretrained(
        model,
        adapter,
        decode=decode,
        format=format,
        max_passage_tokens=max_passage_tokens,
        repeat_identifier=repeat_identifier,
        sanitise=sanitise,
        reading=reading,
        max_batch_tokens=max_batch_tokens,
        self_consistency=self_consistency,
        aggregate=aggregate,
        dtype=dtype,
        load_in_4bit=load_in_4bit,
        trust_remote_code=trust_remote_code,
    )
    shown = records if shuffle is None else [record.shuffled(shuffle, depth) for record in records]
    started = time.perf_counter()
    rankings = with_progress(shown, reranker)
    seconds = time.perf_counter() - started
    write_run({ranking.record.qid: ranking.run for ranking in rankings}, run, tag="lit-rerank")
    if first_stage_run is not None:
        write_run(in_first_stage_order(records), first_stage_run, tag=first_stage or "first-stage")
    if choices is not None:
        write_choices(_choices(rankings, reranker), choices)
    answers = [decoded for ranking in rankings for decoded in ranking.decoded]
    result = {
        **_measured(rankings, records, parsed),
        **lists.counts,
        "windows": len(answers),
        **malformed(answers, decode),
        "seconds": round(seconds, 2),
    }
    report(result, metrics)
    to_tensorboard(logdir, "rerank", result)
    return result


def malformed(answers: "Sequence[Decoded]", decode: str | None) -> dict[str, float]:
    """The share of generated answers that needed repair; the other ways to decode leave nothing to repair."""
    return {"malformed_generate": fmean(one.malformed for one in answers)} if decode == "generate" else {}


def with_progress(records: Sequence[RankingRecord], reranker: "Reranker") -> "list[Ranking]":
    total = sum(reranker.reading.windows(len(record.passages)) for record in records)
    with progress_bar("windows", total) as advance:

        def decode(windows: Sequence[Window], choices: Sequence[int]) -> "Sequence[Decoded]":
            return reranker.decoder(windows, choices, advance)

        return reranker.reading.rerank(records, decode)


def _choices(rankings: "Sequence[Ranking]", reranker: "Reranker") -> Iterator[WindowChoices]:
    """What was chosen in each window; each was read once."""
    decoder = cast("Decoder", reranker.decoder)
    for ranking in rankings:
        passages, wanted = ranking.record.passages, reranker.reading.choices(len(ranking.record.passages))
        for turn, (shown, decoded, matter) in enumerate(zip(ranking.shown, ranking.decoded, wanted, strict=True)):
            yield WindowChoices(
                ranking.record.qid,
                turn,
                tuple(passages[i].docid for i in shown),
                decoded.permutation,
                decoder.choices(len(shown), matter),
                decoded.logps,
                decoded.malformed,
                dealt=len(ranking.decoded) - turn <= ranking.dealt,
            )


def in_first_stage_order(records: Sequence[RankingRecord]) -> dict[str, list[tuple[str, float]]]:
    """The run of lists as they are."""
    return {r.qid: [(passage.docid, -float(rank)) for rank, passage in enumerate(r.passages)] for r in records}


def _measured(
    rankings: "Sequence[Ranking]", records: Sequence[RankingRecord], measures: Sequence[Any]
) -> dict[str, float]:
    """Means over the judged queries of the reranked lists and of the first stage's own order."""
    from lit_rerank.measures import means, per_query

    judged = {record.qid: record.qrels for record in records if record.qrels}
    if not judged:
        return {}
    reranked = {ranking.record.qid: ranking.run for ranking in rankings}
    first = means(per_query(in_first_stage_order(records), judged, measures))
    return {**means(per_query(reranked, judged, measures)), **{f"first_stage.{name}": v for name, v in first.items()}}
