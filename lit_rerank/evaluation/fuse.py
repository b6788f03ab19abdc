"""`evaluate.py fuse`: TREC runs in, one run out."""

from collections.abc import Mapping, Sequence

from data_modules.trec import read_run, write_run
from lit_rerank.comparison.systems import named_files
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import keep_apart

K = 60


def fuse_runs(*runs: str, run: str, k: int = K, depth: int | None = None) -> None:
    """Fuse TREC runs by reciprocal ranks.

    A reranker that reads lists in rounds sees nothing of the first stage's order: fused with it, both have a say.

    Args:
        runs: two or more, FILE or NAME=FILE; of passages that are equally good, the earlier run's stands first.
        run: the TREC run to write.
        k: how little the first ranks count more than those after them.
        depth: only so many of each run, from the top.
    """
    files = named_files(runs)
    if len(files) < 2:
        raise UserError("there is nothing to fuse: name two or more runs")
    if k < 0 or (depth is not None and depth < 1):
        raise UserError(f"k is {k}, depth {depth}: k is 0 or more, the depth 1 or more")
    keep_apart({"run": run}, files.values())
    read = [read_run(path) for path in files.values()]
    ranked = [{qid: [docid for docid, _ in ranking[:depth]] for qid, ranking in one.items()} for one in read]
    qids = dict.fromkeys(qid for one in ranked for qid in one)
    for name, one in zip(files, ranked, strict=True):
        if lacking := len(qids) - len(one):
            print(f"{name} lacks {lacking} of {len(qids)} queries: there the others stand alone")
    fused = {qid: scored(reciprocal([one[qid] for one in ranked if qid in one], k)) for qid in qids}
    write_run(fused, run, tag="lit-rerank")
    print(f"{run}: {len(fused)} queries, of {len(files)} runs")


def reciprocal(rankings: Sequence[Sequence[str]], k: int = K) -> dict[str, float]:
    """Each docid's sum of 1 / (k + rank) over the rankings that have it (Cormack et al. 2009); best first.

    Ranks are counted from 1. Equals stand in the order of the first ranking that has them.
    """
    sums: dict[str, float] = {}
    for ranking in rankings:
        for rank, docid in enumerate(ranking, 1):
            sums[docid] = sums.get(docid, 0.0) + 1 / (k + rank)
    return dict(sorted(sums.items(), key=lambda item: -round(item[1], 12)))


def scored(sums: Mapping[str, float]) -> list[tuple[str, float]]:
    """Scores as a TREC run wants them, which fall from rank to rank: before the point, how many stand below."""
    return [(docid, len(sums) - rank + share) for rank, (docid, share) in enumerate(sums.items(), 1)]
