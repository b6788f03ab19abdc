"""`evaluate.py sweep`: ranking and general ability at several strengths of an adapter.

What needs torch is imported by the functions that use it: `--help` reads this module's signatures alone.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_modules.records import RankingRecord
from data_modules.trec import write_run
from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.evaluation.lists import judged_lists
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import make_way
from lit_rerank.evaluation.rerank import in_first_stage_order, malformed, with_progress
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.intervals import bootstrap_interval
from lit_rerank.paired import LOWER_IS_BETTER
from lit_rerank.questions import SHIPPED, open_questions
from lit_rerank.ways import MAX_BATCH_TOKENS, How
from lit_rerank.whole import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_rerank.measures import Run

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
Point = tuple[float, float]


def sweep_scales(
    model: str,
    adapter: str,
    out: str,
    scales: Sequence[float] = SCALES,
    candidates: str | None = None,
    first_stage: str | None = None,
    collection: str | None = None,
    qrels: str | None = None,
    questions: str = SHIPPED,
    text: str = SHIPPED,
    limit: int | None = None,
    retention: Literal["acc", "acc_cloze", "answer_logprob", "answer_margin", "bits_per_byte"] = "answer_logprob",
    decode: How | None = None,
    window: int | None = None,
    stride: int | None = None,
    depth: int = 100,
    top_k: int | None = None,
    rounds: int | None = None,
    max_passage_tokens: int | None = None,
    queries: int | None = None,
    shuffle: int | None = None,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    batch_size: int = 4,
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    logdir: str | None = None,
) -> dict[str, Any]:
    """Measure how well a model ranks, and what it still knows, at several strengths of its adapter.

    Writes `sweep.json`, `sweep.png` (the trade-off) and a TREC run for each strength. With 0 among the strengths, each
    other point also has its differences to the base, question by question, with 95 % intervals.

    Args:
        model: Hugging Face id or directory.
        adapter: PEFT adapter directory.
        out: the directory to write.
        scales: strengths of the adapter: 0 is the base model, 1 the adapter as trained.
        candidates: as of rerank, as all up to qrels.
        first_stage: instead of candidates: what retrieves them from the collection (bm25, pyserini).
        collection: what the first stage searches.
        qrels: TREC judgements, by default the candidates' or the collection's own.
        questions: as of mmlu; by default the 281 dev questions that lm-eval ships.
        text: as of mmlu.
        limit: only so many questions, spread evenly over all.
        retention: which of mmlu's figures tells what is kept.
        decode: as of rerank, as all up to max_batch_tokens.
        window: passages in one prompt; by default, as stride and rounds and as of rerank, what the adapter keeps.
        stride: how far the window moves up each time.
        depth: candidates reranked per query.
        top_k: only the order of the best so many matters.
        rounds: instead of sliding, or with stride after it, as of rerank.
        max_passage_tokens: each passage is cut to so many tokens; by default as in training.
        queries: only the first so many queries.
        shuffle: a seed; the model sees each list in random order.
        measures: by ir-measures' names; the first is weighed against retention.
        max_batch_tokens: so many tokens are decoded at a time.
        batch_size: questions read at a time.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
        logdir: a TensorBoard directory for the figures, a strength a step (percent), and the picture.
    """
    from lit_rerank.as_trained import reading_as_asked
    from lit_rerank.decoder import Decoder
    from lit_rerank.general_text import open_documents
    from lit_rerank.measurement import Retention
    from lit_rerank.measures import parse_measures
    from lit_rerank.paired import flat, paired
    from lit_rerank.reranker import Reranker
    from lit_rerank.retention import measure
    from lit_rerank.scale import check_scalable, scaled

    parsed = parse_measures(measures)
    reading = reading_as_asked(adapter, window, stride, depth, top_k, rounds)
    if not scales or len(set(scales)) < len(scales):
        raise UserError(f"scales {list(scales)}: name one or more, each once")
    folder = Path(out)
    summary = folder / "sweep.json"
    if _is_complete(summary):
        raise UserError(f"{out} holds a sweep already: name a new directory")
    make_way(str(summary))
    lists = judged_lists(candidates, first_stage, collection, qrels, depth, queries)
    records = lists.records
    if not any(record.qrels for record in records):
        raise UserError("no query is judged: there is nothing to weigh; name judgements by --qrels")
    asked, _ = open_questions(questions, limit=limit)
    read = open_documents(text)
    reranker = Reranker.from_pretrained(
        model,
        adapter,
        decode=decode,
        max_passage_tokens=max_passage_tokens,
        reading=reading,
        max_batch_tokens=max_batch_tokens,
        dtype=dtype,
        load_in_4bit=load_in_4bit,
        trust_remote_code=trust_remote_code,
    )
    assert isinstance(reranker.decoder, Decoder)  # self-consistency would be the other
    loaded, tokenizer = reranker.decoder.model, reranker.decoder.encoder.chat.tokenizer
    for scale in scales:
        check_scalable(loaded, scale)
    shown = records if shuffle is None else [record.shuffled(shuffle, depth) for record in records]
    result: dict[str, Any] = {
        "measure": str(parsed[0]),
        "retention": retention,
        "scales": list(scales),
        **lists.counts,
        "first_stage": ranking_figures(in_first_stage_order(records), records, parsed),
        "points": [],
    }
    base: Retention | None = None
    base_first = sorted(scales, key=lambda scale: (scale != 0, scale))  # the others are compared with it
    for number, scale in enumerate(base_first, start=1):
        print(f"\n== scale {scale:g} ({number} of {len(scales)})", flush=True)
        started = time.perf_counter()
        with scaled(loaded, scale):
            with progress_bar("prompts", 2 * len(asked) + len(read)) as advance:
                measured = measure(loaded, tokenizer, asked, read, batch_size=batch_size, progress=advance)
            kept = measured.figures()
            rankings = with_progress(shown, reranker)
        run = {ranking.record.qid: ranking.run for ranking in rankings}
        write_run(run, folder / f"scale={scale:g}.run.txt", tag=f"scale={scale:g}")
        answers = [decoded for ranking in rankings for decoded in ranking.decoded]
        figures = ranking_figures(run, records, parsed) | malformed(answers, decode)
        seconds = round(time.perf_counter() - started, 2)
        if scale == 0:
            base = measured
        elif base is not None:
            kept |= flat(paired(base, measured))
        result["points"].append({"scale": scale, "ranking": figures, "retention": kept, "seconds": seconds})
        mark_pareto(result)
        with written_whole(summary) as unfinished:
            unfinished.write_text(json.dumps(result, indent=2) + "\n")
        print(table(result), flush=True)
        to_tensorboard(logdir, "sweep", {"ranking": figures, "retention": kept}, step=round(100 * scale))
    to_tensorboard(logdir, "sweep", {}, {"trade_off": draw(result, folder / "sweep.png")})
    print(f"{summary}, {folder / 'sweep.png'}")
    return result


def _is_complete(summary: Path) -> bool:
    """Whether a sweep is there; one that was stopped is begun anew."""
    if not summary.exists():
        return False
    try:
        found = json.loads(summary.read_text())
        return len(found["points"]) == len(found["scales"])
    except (ValueError, KeyError, TypeError):
        return True  # whatever it is, it stays


def ranking_figures(run: "Run", records: Sequence[RankingRecord], measures: Sequence[Any]) -> dict[str, Any]:
    """Means over the judged queries, and the 95 % interval of the first measure's."""
    from lit_rerank.measures import means, per_query

    scores = per_query(run, {record.qid: record.qrels for record in records if record.qrels}, measures)
    first = str(measures[0])
    return {**means(scores), f"{first}_interval": bootstrap_interval([query[first] for query in scores.values()])}


def pareto(points: Sequence[Point]) -> list[bool]:
    """Which points no other beats: none is at least as good in both figures and better in one (higher is better)."""
    front: list[Point] = []
    for point in sorted(points, reverse=True):  # those before have no lower first figure
        if not front or point == front[-1] or point[1] > front[-1][1]:
            front.append(point)
    return [point in front for point in points]


def position(point: Mapping[str, Any], result: Mapping[str, Any]) -> Point:
    """(retention, quality of ranking) of a point."""
    return float(point["retention"][result["retention"]]), float(point["ranking"][result["measure"]])


def mark_pareto(result: dict[str, Any]) -> None:
    """Note at each point whether another is better."""
    sign = -1 if result["retention"] in LOWER_IS_BETTER else 1
    places = [position(point, result) for point in result["points"]]
    unbeaten = pareto([(sign * kept, ranked) for kept, ranked in places])
    for point, mark in zip(result["points"], unbeaten, strict=True):
        point["pareto"] = mark


def table(result: Mapping[str, Any]) -> str:
    """The points so far, one a line; a star marks those that none of them beats."""
    head = f"{'scale':>6} {result['retention']:>12} {result['measure']:>12}"
    first = f"{'':6} {'first stage':>12} {result['first_stage'][result['measure']]:12.4f}"
    return "\n".join([head, first, *(line(point, result) for point in result["points"])])


def line(point: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A point: scale, retention, quality of ranking, a star where none is better, and what was malformed."""
    retained, ranked = position(point, result)
    broken = point["ranking"].get("malformed_generate")
    repaired = "" if broken is None else f"  {broken:.1%} malformed"
    return f"{point['scale']:6g} {retained:12.4f} {ranked:12.4f}{' *' if point['pareto'] else ''}{repaired}"


def draw(result: Mapping[str, Any], path: Path) -> "Figure":
    """The trade-off: retention to the right, quality of ranking upwards, a point for each strength."""
    from matplotlib.figure import Figure

    points = sorted(result["points"], key=lambda point: point["scale"])
    places = [position(point, result) for point in points]
    unbeaten = [place for point, place in zip(points, places, strict=True) if point["pareto"]]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*places, strict=True), "o-", color="tab:gray", label="by strength of the adapter")
    axis.plot(*zip(*unbeaten, strict=True), "o", color="tab:blue", ms=9, label="none beats it (Pareto)")
    for number, (point, place) in enumerate(zip(points, places, strict=True)):
        beside = (0, -16 if number % 2 else 8)  # weak ones stand close together
        axis.annotate(f"s = {point['scale']:g}", place, xytext=beside, textcoords="offset points", ha="center")
    axis.axhline(result["first_stage"][result["measure"]], color="tab:gray", ls=":", label="first stage")
    axis.set(xlabel=f"retention: {result['retention']}", ylabel=f"ranking: {result['measure']}")
    if result["retention"] in LOWER_IS_BETTER:
        axis.invert_xaxis()
    axis.margins(0.15)
    axis.legend()
    figure.savefig(path, dpi=120)
    return figure
