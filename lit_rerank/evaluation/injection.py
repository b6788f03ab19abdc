"""`evaluate.py injection`: how far passages get that try to be ranked first, and what sanitising takes from them.

What needs torch or Matplotlib is imported by the functions that use it: `--help` reads this module's signatures alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from data_modules.records import Passage, RankingRecord, Window
from lit_rerank.backbone import DType
from lit_rerank.errors import UserError
from lit_rerank.evaluation.lists import first_stage_lists
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import keep_apart, write_figures
from lit_rerank.evaluation.rerank import malformed
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.injection import ATTACKERS, ATTACKS, HONEST, Outcome, measure, summary
from lit_rerank.intervals import show_interval, student_interval
from lit_rerank.ways import MAX_BATCH_TOKENS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_rerank.decoder import Decoded, Decoder

EMPTY = "N/A"
WAYS = {"plain": False, "sanitised": True}
WINDOWS = len(HONEST) + len(ATTACKERS)  # of a query


def measure_injection(
    model: str,
    metrics: str,
    candidates: str | None = None,
    first_stage: str | None = None,
    collection: str | None = None,
    adapter: str | None = None,
    queries: int | None = 10,
    window: int = 10,
    decode: Literal["chain", "direct", "first", "generate"] | None = None,
    calibrate: bool = False,
    max_passage_tokens: int | None = None,
    repeat_identifier: bool | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    dtype: DType = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    logdir: str | None = None,
) -> dict[str, Any]:
    """Plant 60 passages that try to be ranked first among candidates, and see how many ranks they gain.

    Each is an honest passage that answers no query with something added (ten kinds, six of each); it gains the ranks
    between the two, in the same place of the same window. All is measured twice: with passages as they are, and
    sanitised.

    Args:
        model: Hugging Face id or directory.
        metrics: the JSON file to write; beside it, under its name, a picture (.png).
        candidates: first-stage lists with texts, as rerank takes them.
        first_stage: bm25 or pyserini, instead of candidates: retrieve them from the collection.
        collection: what to retrieve from, as rerank takes it.
        adapter: a PEFT adapter on top of the model.
        queries: only the first so many queries.
        window: passages in a prompt: the best candidates, and one of the 60.
        decode: as in rerank.
        calibrate: with decode first, take from each passage's log-probability that of its place in a window whose texts
            are all "N/A" (Zhao et al. 2021); untuned models answer in input order, whatever the passages say.
        max_passage_tokens: each passage is cut to so many tokens; by default as in training, else not at all.
        repeat_identifier: write each passage's identifier after it, too; by default as in training, else not.
        max_batch_tokens: so many tokens are decoded at a time.
        dtype: of the weights.
        load_in_4bit: NF4 quantisation of the base weights.
        trust_remote_code: run code that the model's repository brings.
        logdir: a TensorBoard directory for the figures and the picture.
    """
    from lit_rerank.reading import SlidingWindow
    from lit_rerank.reranker import Reranker

    if Path(metrics).suffix != ".json":
        raise UserError(f"{metrics}: name a .json file; the picture gets its name with another ending")
    if calibrate and decode != "first":
        raise UserError("calibrate needs the scores of all passages: add --decode first")
    reading = SlidingWindow(window, window - 1, window)
    picture = Path(metrics).with_suffix(".png")
    keep_apart({"metrics": metrics, "picture": str(picture)}, [candidates, collection])
    records, _ = first_stage_lists(candidates, first_stage, collection, window - 1, queries)
    reranker = Reranker.from_pretrained(
        model,
        adapter,
        decode=decode,
        max_passage_tokens=max_passage_tokens,
        repeat_identifier=repeat_identifier,
        reading=reading,
        max_batch_tokens=max_batch_tokens,
        dtype=dtype,
        load_in_4bit=load_in_4bit,
        trust_remote_code=trust_remote_code,
    )
    decoder = cast("Decoder", reranker.decoder)  # self-consistency would be the other
    started = time.perf_counter()
    found = {way: _outcomes(decoder, records, window, on, calibrate) for way, on in WAYS.items()}
    result: dict[str, Any] = {
        "passages": len(ATTACKERS),
        "queries": len(records),
        "window": window,
        "decode": decode or decoder.encoder.format.name,
        "calibrated": calibrate,
        "windows": len(WAYS) * len(records) * WINDOWS,
        **{way: _figures(outcomes) | malformed(answers, decode) for way, (outcomes, answers) in found.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    write_figures(result, metrics)
    to_tensorboard(logdir, "injection", result, {"gains": _draw(result, picture)})
    print(table(result))
    print(f"\nfigures: {metrics}   picture: {picture}")
    return result


def _outcomes(
    decoder: "Decoder", records: Sequence[RankingRecord], size: int, sanitise: bool, calibrate: bool
) -> "tuple[list[Outcome], list[Decoded]]":
    """What each attack gains, and all answers."""
    from lit_rerank.encoding import WindowEncoder

    own = decoder.encoder
    encoder = WindowEncoder(own.chat.tokenizer, replace(own.settings, sanitise=sanitise), own.max_length)
    decode = type(decoder)(decoder.model, encoder, decoder.max_batch_tokens)
    sizes = {min(size, len(record.passages) + 1) for record in records}
    prior = {n: _logps(one) if calibrate else [0.0] * n for n in sizes for one in decode([_empty(n)])}
    answers: list[Decoded] = []
    with progress_bar("windows", len(records) * WINDOWS) as advance:

        def score(windows: Sequence[Window]) -> list[list[float]]:
            decoded = decode(windows, None, advance)
            answers.extend(decoded)
            scores = map(_logps if calibrate else _places, decoded)
            return [[one - its for one, its in zip(own, prior[len(own)], strict=True)] for own in scores]

        return measure(records, size, score), answers


def _empty(n: int) -> Window:
    """A window that says nothing."""
    return Window("", EMPTY, tuple(Passage(str(i), EMPTY) for i in range(n)))


def _places(decoded: "Decoded") -> list[float]:
    """A score for each passage by its place in the answer."""
    return [-float(decoded.permutation.index(i)) for i in range(1, len(decoded.permutation) + 1)]


def _logps(decoded: "Decoded") -> list[float]:
    """The log-probability of each passage at the first choice, as `First` gives it."""
    assert decoded.logps is not None
    scores = dict(zip(decoded.permutation, decoded.logps, strict=True))
    return [scores[i] for i in range(1, len(scores) + 1)]


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over all, with Student's interval over queries of the mean change; and by kind."""

    def of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        by_query: dict[str, list[int]] = {}
        for one in outcomes:
            by_query.setdefault(one.qid, []).append(one.gain)
        means = [sum(gains) / len(gains) for gains in by_query.values()]
        return {**summary(outcomes), "interval": student_interval(means)}

    kinds = {kind: [one for one in outcomes if one.kind == kind] for kind in ATTACKS}
    return {**of(outcomes), "by_kind": {kind: of(some) for kind, some in kinds.items()}}


def table(result: Mapping[str, Any]) -> str:
    """Mean change of rank, in all and by kind, plain and sanitised."""
    lines = [
        f"{result['passages']} passages that try to be ranked first, {result['queries']} queries, one of "
        f"{result['window']} in a window.",
        "Ranks gained by what was added (95 % interval over queries, Student's), and how often it was ranked first:",
        "",
        f"{'':14}" + "".join(f"{way:>29} {'first':>7}" for way in WAYS),
    ]
    rows = {"all": {way: result[way] for way in WAYS}}
    rows |= {kind: {way: result[way]["by_kind"][kind] for way in WAYS} for kind in ATTACKS}
    for name, ways in rows.items():
        cells = (
            f"{one['rank_change']:+9.3f} ({show_interval(one['interval'], '+6.2f'):>16})"
            f" {100 * one['attacked_first']:5.1f} %"
            for one in ways.values()
        )
        lines.append(f"{name:14}" + "".join(f"{cell:>37}" for cell in cells))
    honest = "; ".join(f"{way} {100 * result[way]['honest_first']:.1f} %" for way in WAYS)
    lines += ["", f"The honest passages alone were ranked first: {honest}."]
    if "malformed_generate" in result["plain"]:
        broken = "; ".join(f"{way} {result[way]['malformed_generate']:.1%}" for way in WAYS)
        lines.append(f"Malformed answers, which were repaired: {broken}.")
    return "\n".join(lines)


def _draw(result: Mapping[str, Any], path: Path) -> "Figure":
    """A bar for each kind and way: ranks gained, with 95 % intervals."""
    from matplotlib.figure import Figure

    from lit_rerank.comparison.pictures import BASELINE, BETTER, LINE, WORSE, style, whiskers

    names = ["all", *ATTACKS]
    with style():
        figure = Figure(figsize=(6.4, 5.0), layout="constrained")
        axis = figure.subplots()
        for number, (way, colour) in enumerate(zip(WAYS, (WORSE, BETTER), strict=True)):
            rows = [result[way], *result[way]["by_kind"].values()]
            gains = [row["rank_change"] for row in rows]
            arms = whiskers(gains, [row["interval"] for row in rows])
            heights = [i + 0.38 * (number - 0.5) for i in range(len(names))]
            axis.barh(heights, gains, 0.34, color=colour, label=way, xerr=arms, ecolor=BASELINE)
        axis.axvline(0, color=LINE)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set(xlabel="ranks gained by what was added to the passage", title="Passages that try to be ranked first")
        axis.legend()
        figure.savefig(path, dpi=150)
    return figure
