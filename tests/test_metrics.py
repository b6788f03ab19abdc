"""trec_eval's measures as a torchmetrics Metric, and weighted means."""

import random
import shutil

import ir_measures
import pytest
import torch

from lit_rerank.errors import UserError
from lit_rerank.means import Means, gather
from lit_rerank.measures import means, parse_measure, parse_measures, per_query
from lit_rerank.metrics import TrecMetrics

MEASURES = ("nDCG@10", "nDCG@3", "RR@10", "AP(rel=2)", "P@5", "R@10")


def queries(
    seed: int = 0, n: int = 20, ties: bool = False
) -> tuple[dict[str, list[tuple[str, float]]], dict[str, dict[str, int]]]:
    """Runs of 30 documents, some judged (some of these not retrieved), grades 0 to 3."""
    draw = random.Random(seed)
    run, qrels = {}, {}
    for i in range(n):
        docids = draw.sample([f"d{j}" for j in range(40)], 30)
        scores = [float(draw.randint(0, 4)) if ties else 30.0 - rank for rank in range(30)]
        run[f"q{i}"] = list(zip(docids, scores, strict=True))
        qrels[f"q{i}"] = {f"d{j}": draw.randint(0, 3) for j in draw.sample(range(40), 15)}
    return run, qrels


@pytest.mark.parametrize("ties", [False, True])
def test_equals_trec_eval_over_the_whole_run(ties: bool) -> None:
    run, qrels = queries(ties=ties)
    metric = TrecMetrics(MEASURES)
    for qid, ranking in run.items():
        metric.update(qid, ranking, qrels[qid])
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    scored = {qid: dict(ranking) for qid, ranking in run.items()}
    whole = ir_measures.calc_aggregate(measures, qrels, scored)
    # trec_eval cuts a run before it looks for the first relevant document; ir-measures has other code for RR@10,
    # with another order of equal scores.
    first_ten = {
        qid: dict(sorted(ranking, key=lambda item: (item[1], item[0]), reverse=True)[:10])
        for qid, ranking in run.items()
    }
    reciprocal = ir_measures.parse_measure("RR")
    expected = ir_measures.calc_aggregate([reciprocal], qrels, first_ten)[reciprocal]
    assert (whole[measures[2]] == pytest.approx(expected)) == (not ties)
    whole[measures[2]] = expected
    assert metric.compute() == pytest.approx({str(m): value for m, value in whole.items()}, abs=1e-12)
    assert means(per_query(run, qrels, measures)) == pytest.approx(metric.compute(), abs=1e-12)
    assert len(set(whole.values())) == len(MEASURES)
    turned = per_query(dict(reversed(run.items())), qrels, measures)
    assert list(turned.items()) == list(per_query(run, qrels, measures).items())  # intervals shall be the same, too


def test_passages_that_are_not_listed_stay_below_those_that_are() -> None:
    (value,) = means(per_query({"q": [("x", 2.9), ("a", 1.9)]}, {"q": {"a": 1, "z": 1, "y": 1}}, parse_measures(
        ["Compat(p=0.8)"]))).values()  # fmt: skip
    assert value == pytest.approx(0.2514, abs=5e-5)


def test_queries_count_once_and_only_where_they_are_judged() -> None:
    run, qrels = queries(n=3)
    metric = TrecMetrics(("nDCG@10",))
    for qid in ("q0", "q1", "q0"):
        metric.update(qid, run[qid], qrels[qid])
    metric.update("q2", run["q2"], {})
    metric.update("q2", run["q2"], None)
    judged = {qid: qrels[qid] for qid in ("q0", "q1")}
    assert metric.compute() == pytest.approx(means(per_query(run, judged, metric.measures)), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_is_empty_before_the_first_query_and_after_reset() -> None:
    run, qrels = queries(n=1)
    metric = TrecMetrics()
    assert metric.compute() == {}
    metric.reset()
    metric.update("q0", run["q0"], qrels["q0"])
    assert list(metric.compute()) == ["nDCG@10"]
    metric.reset()
    assert metric.compute() == {}


def test_means_are_weighted_and_collected_once() -> None:
    figures = Means()
    figures.add("loss", torch.tensor(1.0), 1)
    figures.add("loss", torch.tensor(4.0), 2)
    figures.add("rare", 5.0, 1)
    figures.add("never", float("nan"), 0)
    assert figures.collect() == {"loss": (3.0, 3), "rare": (5.0, 1)}
    assert figures.collect() == {}
    assert gather("alone") == ["alone"]


def test_sums_do_not_depend_on_the_default_type() -> None:
    """bf16-true sets it while a step is made."""
    figures, before = Means(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for _ in range(1000):
            figures.add("plain", 1.6, 8)
            figures.add("tensor", torch.tensor(1.6), 8)
    finally:
        torch.set_default_dtype(before)
    assert figures.collect() == {
        "plain": (pytest.approx(1.6), 8000),
        "tensor": (pytest.approx(float(torch.tensor(1.6, dtype=torch.bfloat16))), 8000),
    }


@pytest.mark.skipif(shutil.which("perl") is None, reason="gdeval is a program in Perl")
def test_gdevals_measures_take_queries_of_any_name() -> None:
    measures = parse_measures(["ERR@20", "nDCG(dcg='exp-log2')@10", "nDCG@10"])
    run, qrels = {"what is a flea": [("a", 2.0), ("b", 1.0)]}, {"what is a flea": {"a": 1, "b": 4}}
    found = per_query(run, qrels, measures)["what is a flea"]
    assert found["ERR@20"] == pytest.approx(1 / 16 + 15 / 16 * 15 / 16 / 2, abs=1e-5)  # (2^grade - 1) / 16
    assert 0 < found["nDCG(dcg='exp-log2')@10"] < found["nDCG@10"] < 1
    with pytest.raises(UserError, match=r"gdeval, behind ERR .* refuses grades above 4"):
        per_query(run, {"what is a flea": {"a": 5}}, measures)


def test_an_unknown_measure_is_a_user_error() -> None:
    with pytest.raises(UserError, match="there is no measure 'nDGC@10'"):
        parse_measure("nDGC@10")
    with pytest.raises(UserError, match="'P' lacks something"):
        parse_measures(["nDCG@10", "P"])
    with pytest.raises(UserError, match=r"'RBP\(rel=1,p=0.8\)' needs a package that ir-measures does not find"):
        parse_measures(["RBP(rel=1,p=0.8)"])
    for name in ("P@0", "AP(rel=0)", "nDCG@True"):
        with pytest.raises(UserError, match="must be 1 or more"):
            parse_measure(name)
    with pytest.raises(UserError, match="'Accuracy' has no value for a query"):
        parse_measure("Accuracy")
    with pytest.raises(UserError, match="name at least one measure"):
        TrecMetrics([])
