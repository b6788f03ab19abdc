"""`evaluate.py fuse`: TREC runs in, one run out."""

from collections import Counter
from collections.abc import Sequence

from data_modules.trec import read_run, write_run
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import keep_apart
from lit_rerank.fusion import K, reciprocal


def fuse_runs(*runs: str, run: str, k: int = K, depth: int | None = None) -> None:
    """Fuse TREC runs by reciprocal ranks.

    A reranker that reads lists in rounds sees nothing of the first stage's order: fused with it, both have a say.

    Args:
        runs: two or more files; of passages that are equally good, the earlier run's stands first.
        run: the TREC run to write; its scores tell how many passages stand below.
        k: each rank counts 1 / (k + rank): the larger k, the less the first ranks stand out.
        depth: only so many of each run, from the top.
    """
    if len(runs) < 2:
        raise UserError("there is nothing to fuse: name two or more runs")
    if k < 0 or (depth is not None and depth < 1):
        raise UserError(f"k is {k}, depth {depth}: k is 0 or more, the depth 1 or more")
    keep_apart({"run": run}, runs)
    read = [read_run(path) for path in runs]
    of_query = Counter(qid for one in read for qid in one)
    if max(of_query.values(), default=0) < 2:
        raise UserError(f"no query is in two of {', '.join(runs)}: are they runs of the same queries?")
    for path, one in zip(runs, read, strict=True):
        if lacking := len(of_query) - len(one):
            print(f"{path} lacks {lacking} of {len(of_query)} queries: there the others stand alone")
    ranked = [{qid: [docid for docid, _ in ranking[:depth]] for qid, ranking in one.items()} for one in read]
    fused = {qid: scored(reciprocal([one[qid] for one in ranked if qid in one], k)) for qid in of_query}
    write_run(fused, run, tag="lit-rerank")
    print(f"{run}: {len(fused)} queries, of {len(runs)} runs")


def scored(order: Sequence[str]) -> list[tuple[str, float]]:
    """Each docid with how many stand below it."""
    return [(docid, float(len(order) - rank)) for rank, docid in enumerate(order, 1)]
