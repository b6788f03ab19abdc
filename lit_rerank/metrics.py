"""trec_eval's measures as a torchmetrics Metric, exact under DDP."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rerank.errors import UserError

Run = Mapping[str, Sequence[tuple[str, float]]]
Qrels = Mapping[str, Mapping[str, int]]


class TrecMetrics(Metric):
    """Means over queries of ir-measures' measures (`nDCG@10`, `RR@10`, ...), computed by trec_eval's code.

    A query that several processes see (padded samplers repeat some) counts once.
    """

    full_state_update = False
    higher_is_better = True
    qids: list[Tensor]
    values: list[Tensor]

    def __init__(self, measures: Sequence[str] = ("nDCG@10",), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measures = [parse_measure(name) for name in measures]
        self.add_state("qids", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, qid: str, ranking: Sequence[tuple[str, float]], qrels: Mapping[str, int]) -> None:
        """Add one query: its (docid, score) pairs and its judgements."""
        scores = per_query({qid: ranking}, {qid: qrels}, self.measures)[qid]
        digest = hashlib.blake2b(qid.encode(), digest_size=8).digest()
        self.qids.append(torch.tensor([int.from_bytes(digest, "big") >> 1], device=self.device))
        row = [scores[str(measure)] for measure in self.measures]
        self.values.append(torch.tensor([row], dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, float]:
        """Mean of each measure over the queries; empty before the first."""
        if len(self.qids) == 0:
            return {}
        qids, values = (state if isinstance(state, Tensor) else torch.cat(state) for state in (self.qids, self.values))
        first = {qid: i for i, qid in reversed(list(enumerate(qids.tolist())))}
        means = values[list(first.values())].mean(0).tolist()
        return dict(zip(map(str, self.measures), means, strict=True))


def per_query(run: Run, qrels: Qrels, measures: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The measures of every query that has judgements."""
    import ir_measures

    qrels = {qid: dict(judged) for qid, judged in qrels.items() if qid in run}
    scored = {qid: dict(ranking) for qid, ranking in run.items() if qid in qrels}
    found: dict[str, dict[str, float]] = {qid: {} for qid in scored}
    for metric in ir_measures.iter_calc(list(measures), qrels, scored):
        found[metric.query_id][str(metric.measure)] = metric.value
    return found


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over queries of what `per_query` returns."""
    names = next(iter(scores.values()), {})
    return {name: sum(query[name] for query in scores.values()) / len(scores) for name in names}


def parse_measure(name: str) -> Any:
    """A measure by its name in ir-measures."""
    import ir_measures

    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
        raise UserError(f"there is no measure {name!r}; ir-measures' names are such as nDCG@10, RR@10, AP(rel=2)") from error
