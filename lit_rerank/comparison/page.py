"""One HTML page that shows a comparison: it needs nothing but itself, in a light or a dark scheme."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from data_modules.naming import named
from lit_rerank.comparison.significance import differences, show_p
from lit_rerank.comparison.systems import Judgements, System
from lit_rerank.comparison.texts import Texts
from lit_rerank.intervals import show_interval

DEPTH = 10  # passages of each list that are shown
MOST_QUERIES = 200  # whose lists are shown: some 10 kB each
MOST_CHARACTERS = 1_000  # of a passage


def render_page(
    result: Mapping[str, Any], systems: Sequence[System], qrels: Judgements, texts: Texts, pictures: Mapping[str, str]
) -> str:
    """The page.

    Args:
        result: the figures, as they are written.
        systems: the baseline first.
        pictures: SVG elements by name; they stand in the page as they are, whereas all other text is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., str]] = {
        "three": lambda value: "" if value is None else f"{value:.3f}",
        "signed": lambda value: "" if value is None else f"{value:+.3f}",
        "range": lambda ends: show_interval(ends, ".3f"),
        "signed_range": lambda ends: show_interval(ends, "+.3f"),
        "p_value": show_p,
        "named": named,
    }
    environment.filters |= filters
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    shown = _most_different(result["measures"][0], systems)
    grades = sorted({grade for judged in qrels.values() for grade in judged.values()}, reverse=True)
    return template.render(
        title=_title([system.name for system in systems]),
        result=result,
        others=[system.name for system in systems[1:]],
        rows=_rows(result),
        tables=[_table(measure, systems, texts) for measure in result["measures"]],
        rankings={
            number: _rankings(number, qid, systems, qrels, texts, result)
            for number, qid in enumerate(qrels)
            if number in shown
        },
        grades=grades,
        depth=DEPTH,
        pictures=pictures,
    )


def _title(names: Sequence[str]) -> str:
    baseline, *others = names
    what = ", ".join(others) if len(others) <= 3 else f"{len(others)} systems"
    return f"{what} compared with {baseline}"


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of means and tests, measure by measure."""
    compared = {(one["measure"], one["system"]): one for one in result["comparisons"]}
    return [
        {
            "measure": measure if name == result["baseline"] else "",
            "system": name,
            "mean": system["means"][measure]["mean"],
            "mean_interval": system["means"][measure]["interval"],
            "paired": compared.get((measure, name)),
        }
        for measure in result["measures"]
        for name, system in result["systems"].items()
    ]


def _table(measure: str, systems: Sequence[System], texts: Texts) -> dict[str, Any]:
    """A measure of every query, with the differences to the baseline and how wide these are drawn."""
    baseline, *others = systems
    columns = [system.values(measure) for system in others]
    deltas = [differences(column, baseline.values(measure)) for column in columns]
    largest = max((abs(value) for column in deltas for value in column), default=0.0) or 1.0
    queries = [
        {
            "number": number,
            "qid": qid,
            "text": texts.queries.get(qid, ""),
            "baseline": scores[measure],
            "cells": [
                {"value": own[number], "difference": delta[number], "width": f"{50 * abs(delta[number]) / largest:.1f}"}
                for own, delta in zip(columns, deltas, strict=True)
            ],
        }
        for number, (qid, scores) in enumerate(baseline.scores.items())
    ]
    return {"measure": measure, "queries": queries}


def _most_different(measure: str, systems: Sequence[System]) -> set[int]:
    """The queries whose lists are shown, by number: if not all, those with the largest differences to the baseline."""
    baseline, *others = (system.values(measure) for system in systems)
    largest = [max(abs(value - own) for value in values) for own, *values in zip(baseline, *others, strict=True)]
    return set(sorted(range(len(largest)), key=lambda number: -largest[number])[:MOST_QUERIES])


def _rankings(
    number: int, qid: str, systems: Sequence[System], qrels: Judgements, texts: Texts, result: Mapping[str, Any]
) -> dict[str, Any]:
    """A query's lists, side by side."""
    ranks = {docid: rank for rank, (docid, _) in enumerate(systems[0].run.get(qid, []), start=1)}
    return {
        "number": number,
        "qid": qid,
        "text": texts.queries.get(qid, ""),
        "scores": [f"{system.scores[qid][result['measures'][0]]:.3f}" for system in systems],
        "judged": sorted(Counter(qrels[qid].values()).items(), reverse=True),
        "lists": [
            {
                "system": system.name,
                "passages": [
                    {
                        "rank": rank,
                        "docid": docid,
                        "grade": qrels[qid].get(docid),
                        "was": None if system is systems[0] else _moved(rank, ranks.get(docid)),
                        "text": _cut(texts.passage(qid, docid)),
                    }
                    for rank, (docid, _) in enumerate(system.run.get(qid, [])[:DEPTH], start=1)
                ],
            }
            for system in systems
        ],
    }


def _moved(rank: int, before: int | None) -> str | None:
    """Where the baseline has a passage, if elsewhere."""
    if before is None:
        return "not in the baseline's list"
    return None if before == rank else f"{'up' if before > rank else 'down'} from {before}"


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
