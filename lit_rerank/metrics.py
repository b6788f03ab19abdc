"""trec_eval's measures as a torchmetrics Metric."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_rerank.measures import parse_measures, per_query


class TrecMetrics(Metric):
    """Means over queries of ir-measures' measures (`nDCG@10`, `RR@10`, ...), computed by trec_eval's code.

    A query that several processes see (padded samplers repeat some) counts once; one without judgements does not.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, measures: Sequence[str] = ("nDCG@10",), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measures = parse_measures(measures)
        # Flat and of one type, for a process without queries contributes an empty vector of the metric's type.
        self.set_dtype(torch.float64)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, qid: str, ranking: Sequence[tuple[str, float]], qrels: Mapping[str, int] | None) -> None:
        """Add one query: its (docid, score) pairs and its judgements."""
        if not qrels:
            return
        scores = per_query({qid: ranking}, {qid: qrels}, self.measures)[qid]
        digest = int.from_bytes(hashlib.blake2b(qid.encode(), digest_size=8).digest(), "big")
        row = [
            float(digest >> 11),
            *(scores[str(measure)] for measure in self.measures),
        ]  # 53 bits: a float64 holds them
        self.rows.append(torch.tensor(row, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, float]:
        """Mean of each measure over the queries; empty before the first."""
        if len(self.rows) == 0:
            return {}
        table = dim_zero_cat(self.rows).view(-1, 1 + len(self.measures))
        queries = {row[0]: row[1:] for row in table.tolist()}
        columns = zip(*queries.values(), strict=True)
        return {str(m): sum(column) / len(column) for m, column in zip(self.measures, columns, strict=True)}
