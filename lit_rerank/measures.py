"""trec_eval's measures by ir-measures' names, query by query."""

from collections.abc import Mapping, Sequence
from subprocess import CalledProcessError
from typing import Any

from data_modules.trec import in_order
from lit_rerank.errors import UserError

Run = Mapping[str, Sequence[tuple[str, float]]]
Qrels = Mapping[str, Mapping[str, int]]


def per_query(run: Run, qrels: Qrels, measures: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The measures of every query that has judgements, in the judgements' order, whatever the run's.

    Equal scores are ordered as trec_eval orders them for all measures: what stands behind some of ir-measures' (RR@10)
    would do otherwise. Queries go by numbers, for gdeval takes no other names.

    Raises:
        UserError: if gdeval refuses the judgements.
    """
    import ir_measures

    qids = [qid for qid in qrels if qid in run]  # as in compare: intervals draw at random, by place
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
