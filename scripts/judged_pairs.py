"""How often a model prefers what is relevant to what is not: pairs of judged passages, read in both orders.

What is left of a ranking when windows, strides and the first stage's order are taken away; beside it, what the untaught
model knows passage by passage: without an adapter, pairs are read by query likelihood.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from math import expm1, log
from pathlib import Path

from data_modules.records import Window
from data_modules.sources.detect import open_candidates
from data_modules.trec import read_qrels
from lit_rerank.cli import in_one_line
from lit_rerank.decoder import Decoded, Decoder
from lit_rerank.errors import UserError
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import make_way, report
from lit_rerank.reranker import Reranker
from lit_rerank.ways import How
from scripts.recipes import dtype

RELEVANT = 2  # grades from here on, against 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", help="without one, the model is read by query likelihood")
    parser.add_argument("--candidates", type=Path, required=True, nargs="+", help="files of first-stage lists")
    parser.add_argument("--qrels", type=Path, required=True)
    parser.add_argument("--of_each", type=int, default=2, help="pairs of each list")
    parser.add_argument("--max_passage_tokens", type=int, help="by default as the adapter was trained, without one 60")
    parser.add_argument("--metrics", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    if args.of_each < 1:
        raise UserError(f"of_each is {args.of_each}; it must be at least 1")
    make_way(str(args.metrics))
    windows = list(pairs(args.candidates, args.qrels, args.of_each))
    if not windows:
        raise UserError(f"{args.qrels}: no list holds both a passage of grade {RELEVANT} or more and one of grade 0")
    length = args.max_passage_tokens or (60 if args.adapter is None else None)
    decode: How = "likelihood" if args.adapter is None else "first"
    reranker = Reranker.from_pretrained(
        args.model, args.adapter, decode=decode, max_passage_tokens=length, dtype=dtype()
    )
    assert isinstance(reranker.decoder, Decoder)
    report({"decode": decode, "pairs": len(windows), **measured(reranker.decoder, windows)}, str(args.metrics))


def pairs(candidates: Sequence[Path], qrels: Path, of_each: int) -> Iterator[Window]:
    """Windows of two, the relevant one first, so many of each list that has both; a pair may come twice."""
    grades = read_qrels(str(qrels))
    for path in candidates:
        for record in open_candidates(str(path)):
            known, draw = grades.get(record.qid, {}), random.Random(f"{path.name}{record.qid}")
            places = range(len(record.passages))
            good = [i for i in places if known.get(record.passages[i].docid, -1) >= RELEVANT]
            bad = [i for i in places if known.get(record.passages[i].docid, -1) == 0]
            if good and bad:
                yield from (Window.of(record, (draw.choice(good), draw.choice(bad))) for _ in range(of_each))


def measured(decoder: Decoder, windows: Sequence[Window]) -> dict[str, float]:
    """Shares of pairs whose relevant passage is preferred: as it stands first or second, and by both readings."""
    turned = [Window(w.qid, w.query, tuple(reversed(w.passages))) for w in windows]
    with progress_bar("pairs", 2 * len(windows)) as advance:
        decoded = decoder([*windows, *turned], progress=advance)
    first = [_preference(one, 1) for one in decoded[: len(windows)]]
    second = [_preference(one, 2) for one in decoded[len(windows) :]]
    both = [a + b for a, b in zip(first, second, strict=True)]
    return {
        name: sum(preference > 0 for preference in preferences) / len(windows)
        for name, preferences in {"stands_first": first, "stands_second": second, "both": both}.items()
    }


def _preference(decoded: Decoded, relevant: int) -> float:
    """log of how many times as probable the relevant one's choice is as the other's, in nats."""
    assert decoded.logps is not None
    logp = min(decoded.logps[0], -1e-9)  # of the preferred one; a certain choice would be infinite
    odds = logp - log(-expm1(logp))
    return odds if decoded.permutation[0] == relevant else -odds


if __name__ == "__main__":
    in_one_line(main)
