"""Figures of batches and processes put together: trec_eval's measures as a torchmetrics Metric, and weighted means."""

import hashlib
from collections.abc import Mapping, Sequence
from subprocess import CalledProcessError
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from data_modules.trec import in_order
from lit_rerank.errors import UserError

Run = Mapping[str, Sequence[tuple[str, float]]]
Qrels = Mapping[str, Mapping[str, int]]
T = TypeVar("T")


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


class Means:
    """Weighted means of named figures over batches and processes; not every process needs to know every name."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def add(self, name: str, value: Tensor | float, weight: int) -> None:
        """Add a mean over `weight` things."""
        if weight:
            mean = value.detach().float() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._totals[name] = mean * weight + self._totals.get(name, 0.0)
            self._weights[name] = self._weights.get(name, 0) + weight

    def state(self) -> dict[str, tuple[Tensor, int]]:
        """What has been added on this process since the last `collect`: sum and weight of every figure."""
        return {name: (total.cpu(), self._weights[name]) for name, total in self._totals.items()}

    def set_state(self, state: Mapping[str, tuple[Tensor, int]]) -> None:
        """Go on from where `state` was called."""
        self._totals = {name: total for name, (total, _) in state.items()}
        self._weights = {name: weight for name, (_, weight) in state.items()}

    def collect(self) -> dict[str, tuple[float, int]]:
        """Mean and weight of every figure of all processes, each of which must call this; then all begins anew."""
        own = {name: (total.item(), weight) for name, (total, weight) in self.state().items()}
        self.set_state({})
        parts = gather(own)
        collected = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            totals, weights = zip(*(part[name] for part in parts if name in part), strict=True)
            collected[name] = (sum(totals) / sum(weights), sum(weights))
        return collected


def gather(own: T) -> list[T]:
    """What every process has, by rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def per_query(run: Run, qrels: Qrels, measures: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The measures of every query that has judgements.

    Equal scores are ordered as trec_eval orders them for all measures: what stands behind some of ir-measures' (RR@10)
    would do otherwise. Queries go by numbers, for gdeval takes no other names.

    Raises:
        UserError: if gdeval refuses the judgements.
    """
    import ir_measures

    qids = [qid for qid in run if qid in qrels]
    judged, scored = {}, {}
    for number, qid in enumerate(qids):
        judged[str(number)] = dict(qrels[qid])
        ranking = in_order(run[qid])
        scored[str(number)] = {docid: float(len(ranking) - rank) for rank, (docid, _) in enumerate(ranking)}
    found: dict[str, dict[str, float]] = {qid: {} for qid in qids}
    try:
        for metric in ir_measures.iter_calc(list(measures), judged, scored):
            found[qids[int(metric.query_id)]][str(metric.measure)] = metric.value
    except CalledProcessError as error:
        raise UserError("gdeval, behind ERR and nDCG(dcg='exp-log2'), refuses grades above 4: choose others") from error
    return found


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over queries of what `per_query` returns."""
    names = next(iter(scores.values()), {})
    return {name: sum(query[name] for query in scores.values()) / len(scores) for name in names}


def parse_measures(names: Sequence[str]) -> list[Any]:
    """Measures by their names in ir-measures, one or more."""
    if not names:
        raise UserError("name at least one measure")
    return [parse_measure(name) for name in names]


def parse_measure(name: str) -> Any:
    """A measure by its name in ir-measures, which can be computed here."""
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        providers = [p for p in ir_measures.DefaultPipeline.providers if p.is_available() and p.supports(measure)]
    except (NameError, ValueError, SyntaxError) as error:
        raise UserError(
            f"there is no measure {name!r}; ir-measures' names are such as nDCG@10, RR@10, AP(rel=2)"
        ) from error
    except AssertionError as error:
        raise UserError(f"measure {name!r} lacks something, or has too much: a cutoff as in nDCG@10?") from error
    if not providers:
        raise UserError(f"measure {name!r} needs a package that ir-measures does not find here: choose another")
    for parameter in ("cutoff", "rel"):
        value = measure.params.get(parameter, 1)
        if isinstance(value, bool) or value < 1:  # the code behind may end the process
            raise UserError(f"measure {name!r}: its {parameter} must be 1 or more")
    if not per_query({"q": [("found", 1.0)]}, {"q": {"relevant": 1}}, [measure])["q"]:
        raise UserError(f"measure {name!r} has no value for a query whose list holds nothing relevant: choose another")
    return measure
