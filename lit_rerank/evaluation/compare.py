"""`evaluate.py compare`: TREC runs and judgements in; means, paired tests, pictures and a page out.

What needs torch, SciPy or Matplotlib is imported by the functions that use it: `--help` reads this module's signatures.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.catalogue import open_collection
from data_modules.collection import Collection
from data_modules.trec import read_qrels
from lit_rerank.comparison.behaviour import Behaviour, behaviour
from lit_rerank.comparison.page import render_page
from lit_rerank.comparison.pictures import as_svg, draw_deltas, draw_means, draw_positions, draw_reliability, style
from lit_rerank.comparison.significance import RESAMPLES, corrected, differences, paired, show_p
from lit_rerank.comparison.systems import Judgements, System, named_files, read_system
from lit_rerank.comparison.texts import read_texts
from lit_rerank.comparison.windows import read_windows
from lit_rerank.errors import UserError
from lit_rerank.evaluation.lists import NOT_JUDGED, say_which
from lit_rerank.evaluation.report import keep_apart, write_figures
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.intervals import bootstrap_interval, show_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST = (
    "p: two-sided paired randomisation test of the mean difference over queries (it supposes that the values of "
    "systems which are equally good could be swapped, so that differences are symmetric about 0), exact for up to 16 "
    f"queries, with {RESAMPLES:,} random draws above"
)
CORRECTION = (
    "Corrected: Benjamini and Hochberg's false discovery rate over all tests of this comparison, an approximation for "
    "tests that depend on each other as these do"
)
HEADINGS = "    mean  95 % interval     difference  95 % interval           w/t/l        d         p  corrected"
INTERVALS = "Intervals: 95 %, over two or more queries: of means by the bootstrap (BCa), of differences Student's"


def compare_runs(
    *runs: str,
    metrics: str,
    qrels: str | None = None,
    baseline: str | None = None,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    candidates: str | Sequence[str] | None = None,
    collection: str | None = None,
    choices: Sequence[str] = (),
    logdir: str | None = None,
) -> dict[str, Any]:
    """Compare TREC runs: means, paired tests, query by query; a page to read and pictures beside the figures.

    A judged query that a run lacks counts 0 (as `trec_eval -c` has it), one without judgements does not count; both
    are reported.

    Args:
        runs: two or more, FILE or NAME=FILE; a FILE alone is called by its name without the suffix.
        metrics: the JSON file to write; beside it, under its name: the page (.html) and the pictures (.png).
        qrels: TREC judgements, by default the collection's.
        baseline: the NAME of the run that others are compared with; by default the first.
        measures: by ir-measures' names; the first is shown query by query in the pictures.
        candidates: file or files with the queries' and passages' texts, for the page; as rerank takes them.
        collection: the same from what the runs were retrieved from, by its name in rerank.
        choices: NAME=FILE for runs whose choices rerank has written: is the model as right as it is sure, and which
            input positions does it pick from?
        logdir: a TensorBoard directory for the means and the pictures.
    """
    from lit_rerank.measures import parse_measures

    files = named_files(runs)
    if len(files) < 2:
        raise UserError("there is nothing to compare: name two or more runs")
    first = next(iter(files)) if baseline is None else baseline
    chosen = named_files(choices)
    for option, name in (("baseline", first), *(("choices", name) for name in chosen)):
        if name not in files:
            raise UserError(f"{option}: no run is called {name!r}; there are {', '.join(files)}")
    if Path(metrics).suffix != ".json":
        raise UserError(f"{metrics}: name a .json file; the page and the pictures get its name with other endings")
    page = Path(metrics).with_suffix(".html")
    texts_of = [candidates] if isinstance(candidates, str) else list(candidates or [])
    read = [*files.values(), *chosen.values(), *texts_of, qrels, collection]
    keep_apart({"metrics": metrics, "page": str(page)}, read)
    parsed = parse_measures(measures)
    opened = None if collection is None else open_collection(collection)
    judged = _judgements(qrels, opened)
    in_order = [first, *(name for name in files if name != first)]
    systems = [read_system(name, files[name], judged, parsed) for name in in_order]
    behaviours = {s.name: behaviour(read_windows(chosen[s.name], s), judged) for s in systems if s.name in chosen}
    texts = read_texts(texts_of, opened, judged)

    result = _figures(systems, str(qrels or collection), list(dict.fromkeys(map(str, parsed))), behaviours)
    write_figures(result, metrics)
    pictures = _pictures(result, systems, behaviours, Path(metrics), logdir)
    page.write_text(render_page(result, systems, judged, texts, pictures), "utf-8", "xmlcharrefreplace")
    _print(result)
    print(f"\npage: {page}   figures: {metrics}   pictures: {page.with_suffix('.*.png')}")
    return result


def _judgements(path: str | None, collection: Collection | None) -> Judgements:
    """Those of the file or, without one, the collection's."""
    judged: Judgements
    if path is not None:
        judged, source = read_qrels(path), path
    elif collection is not None:
        judged, source = collection.qrels, collection.name
    else:
        raise UserError("name --qrels FILE, or a --collection that has judgements")
    if not judged:
        raise UserError(f"{source} holds no judgement")
    return judged


def _figures(
    systems: Sequence[System], judgements: str, measures: Sequence[str], behaviours: Mapping[str, Behaviour]
) -> dict[str, Any]:
    """All figures, as they are written."""
    baseline, *others = systems
    pairs = [(system, measure) for measure in measures for system in others]
    comparisons = [paired(system.values(measure), baseline.values(measure)) for system, measure in pairs]
    ps = corrected([one.p for one in comparisons])
    return {
        "qrels": judgements,
        "queries": len(baseline.scores),
        "baseline": baseline.name,
        "measures": list(measures),
        "test": TEST,
        "correction": CORRECTION,
        "intervals": INTERVALS,
        "systems": {
            system.name: {
                "run": system.path,
                "means": {measure: _mean(system.values(measure)) for measure in measures},
                "missing": list(system.missing),
                "unjudged": list(system.unjudged),
            }
            for system in systems
        },
        "comparisons": [
            {"system": system.name, "measure": measure, **asdict(one), "p_corrected": p}
            for (system, measure), one, p in zip(pairs, comparisons, ps, strict=True)
        ],
        "choices": {name: asdict(shown) for name, shown in behaviours.items()},
        "per_query": {qid: {system.name: dict(system.scores[qid]) for system in systems} for qid in baseline.scores},
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "interval": bootstrap_interval(values)}


def _pictures(
    result: Mapping[str, Any],
    systems: Sequence[System],
    behaviours: Mapping[str, Behaviour],
    beside: Path,
    logdir: str | None,
) -> dict[str, str]:
    """Write the pictures beside the figures and to TensorBoard; returns them as SVG for the page."""
    with style():
        drawn = _draw(result, systems, behaviours)
        for name, figure in drawn.items():
            figure.savefig(beside.with_suffix(f".{name}.png"), dpi=150)
        to_tensorboard(logdir, "compare", _scalars(result), drawn)
        return {name: as_svg(figure, name) for name, figure in drawn.items()}


def _draw(
    result: Mapping[str, Any], systems: Sequence[System], behaviours: Mapping[str, Behaviour]
) -> "dict[str, Figure]":
    """The pictures by name."""
    baseline, *others = systems
    measure = result["measures"][0]
    means = {
        name: {system: figures["means"][name] for system, figures in result["systems"].items()}
        for name in result["measures"]
    }
    deltas = {system.name: differences(system.values(measure), baseline.values(measure)) for system in others}
    drawn = {
        "systems": draw_means(means, baseline.name),
        "deltas": draw_deltas(deltas, measure, baseline.name),
    }
    if behaviours:
        drawn |= {"reliability": draw_reliability(behaviours), "positions": draw_positions(behaviours)}
    return drawn


def _scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Means by measure and system, and what sets each apart from the baseline."""
    figures: dict[str, Any] = {
        measure: {name: system["means"][measure]["mean"] for name, system in result["systems"].items()}
        for measure in result["measures"]
    }
    for one in result["comparisons"]:
        named = ("difference", "p", "p_corrected")
        figures[f"{one['measure']}/{one['system']}"] = {name: one[name] for name in named}
    return figures


def _print(result: Mapping[str, Any]) -> None:
    """The table of means and tests, and what there is to know about queries that do not match."""
    width = max(map(len, result["systems"]))
    compared = {(one["measure"], one["system"]): one for one in result["comparisons"]}
    for measure in result["measures"]:
        print(f"\n{measure}, {result['queries']} judged queries, baseline {result['baseline']}")
        print(f"{'':{width}}{HEADINGS}")
        for name, system in result["systems"].items():
            mean, interval = system["means"][measure].values()
            line = f"{name:{width}}  {mean:6.4f}  {show_interval(interval, '6.4f'):16}"
            if one := compared.get((measure, name)):
                record = f"{one['wins']}/{one['ties']}/{one['losses']}"
                effect = "" if one["effect_size"] is None else f"{one['effect_size']:+.2f}"
                line += (
                    f"     {one['difference']:+.4f}  {show_interval(one['interval'], '+.4f'):18}  "
                    f"{record:>10}  {effect:>7}  {show_p(one['p']):>8}   {show_p(one['p_corrected']):>8}"
                )
            print(line)
    for name, shown in result["choices"].items():
        if shown["judged_choices"]:
            print(
                f"\n{name}: {shown['judged_choices']} judged choices, {shown['accuracy']:.4f} right, mean probability "
                f"{shown['confidence']:.4f}, calibration error {shown['calibration_error']:.4f}"
            )
    print(f"\n{TEST}. {CORRECTION}. {INTERVALS}. d: mean difference in standard deviations of the differences.")
    for name, system in result["systems"].items():
        say_which(system["missing"], "judged queries are missing and count 0", name)
        say_which(system["unjudged"], NOT_JUDGED, name)
