"""What `make results` has measured so far, in tables, figures and pictures."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from data_modules.trec import Qrels, read_qrels
from lit_rerank.comparison.significance import corrected, paired
from lit_rerank.comparison.systems import read_system
from lit_rerank.evaluation.tensorboard import to_tensorboard
from lit_rerank.intervals import bootstrap_interval
from lit_rerank.measurement import Retention
from lit_rerank.measures import parse_measures
from lit_rerank.paired import flat
from lit_rerank.paired import paired as paired_retention
from scripts.learning import cost, is_logged
from scripts.measured import DETAILS, evaluate, first_stage_run
from scripts.pictures import draw_curves, draw_trade_off
from scripts.rows import COLUMNS, ROWS, TRAININGS, TWICE
from scripts.tables import differences, kept_over_direct, table, trainings

TESTED = ("difference", "interval", "p", "p_corrected")


def summarise(lists: Path, runs: Path) -> None:
    """What is measured so far, compared with the first stage and with direct SFT: summary.json, .md and pictures."""
    compared = {column: compare(column, lists, runs) for column in COLUMNS}
    kept = {name: retained(name, runs) for name in ROWS if (runs / "measured" / name / "mmlu.json").exists()}
    trained = {name: cost(runs / name) for name in TRAININGS if is_logged(runs / name)}
    summary = {"ranking": compared, "retention": kept, "training": trained}
    (runs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    to_tensorboard(str(runs), "results", summary)
    tables = [table(compared, kept), differences(compared), kept_over_direct(kept), trainings(trained)]
    (runs / "summary.md").write_text("\n".join(table for table in tables if table.count("\n") > 2))
    draw_trade_off(compared, kept, runs / "trade_off.png")
    learners = [name for name in trained if name not in ROWS or ROWS[name].depths]
    draw_curves(learners, runs, runs / "learning_curves.png")
    print(f"\n{(runs / 'summary.md').read_text()}\nfigures: {runs}/summary.json   pictures: {runs}/*.png")


def compare(column: str, lists: Path, runs: Path) -> dict[str, Any]:
    """nDCG@10 of each row that has ranked a column's lists, with `evaluate.py compare`'s tests against the first stage
    and direct SFT."""
    first_stage = column.partition(".")[0]
    candidates, qrels = f"{lists}/dl21.{first_stage}.top100.jsonl.gz", f"{lists}/qrels.dl21.txt"
    own = first_stage_run(first_stage, lists, runs / "measured")
    ranked = {name: f"{runs}/measured/{name}/dl21.{column}" for name in ROWS}
    ranked = {name: path for name, path in ranked.items() if Path(f"{path}.run.txt").exists()}
    if not ranked:
        return {first_stage: mean_of(own, read_qrels(qrels))}
    found: dict[str, Any] = {}
    for title, rows in families(ranked).items():
        chosen = {name: file for name in rows if Path(file := f"{ranked[name]}.choices.jsonl.gz").exists()}
        words = [
            f"{first_stage}={own}",
            *(f"{name}={ranked[name]}.run.txt" for name in rows),
            *(f"--choices+={name}={file}" for name, file in chosen.items()),
            *("--qrels", qrels, "--candidates", candidates),
        ]
        for baseline in [first_stage, *({"direct"} & {*rows})]:
            result = compared_with(baseline, runs / "compared" / f"{column}{title}.{baseline}.json", words)
            for name, system in result["systems"].items():
                found.setdefault(name, system["means"]["nDCG@10"])
            for one in result["comparisons"]:
                if one["measure"] == "nDCG@10":
                    found[one["system"]][f"over_{baseline}"] = {name: one[name] for name in TESTED}
    if column.endswith(f".{TWICE}"):
        for name, tested in over_sliding(ranked, read_qrels(qrels)).items():
            found[name]["over_sliding"] = tested
    return found


def families(rows: Iterable[str]) -> dict[str, list[str]]:
    """The rows that are corrected for one another: one that knows the answers would make the others' tests laxer."""
    fair, knowing = ([name for name in rows if ROWS[name].knows_answers == knows] for knows in (False, True))
    return {title: names for title, names in {"": fair, ".knowing": knowing}.items() if names}


def over_sliding(ranked: Mapping[str, str], qrels: Qrels) -> dict[str, dict[str, Any]]:
    """What each row's lists, which were read twice, have gained over sliding alone, where that is known."""
    slid = {name: path.removesuffix(f".{TWICE}") for name, path in ranked.items()}
    both = [name for name in ranked if Path(f"{slid[name]}.run.txt").exists()]
    gains = [paired(*(ndcg(f"{ways[name]}.run.txt", qrels) for ways in (ranked, slid))) for name in both]
    ps = corrected([gain.p for gain in gains])
    return {
        name: {**{figure: getattr(gain, figure) for figure in ("difference", "interval", "p")}, "p_corrected": p}
        for name, gain, p in zip(both, gains, ps, strict=True)
    }


def compared_with(baseline: str, metrics: Path, words: list[str]) -> dict[str, Any]:
    """What `evaluate.py compare` says of systems, against one of them; anew, for another row may have come."""
    metrics.unlink(missing_ok=True)
    evaluate("compare", metrics, *words, "--baseline", baseline)
    result: dict[str, Any] = json.loads(metrics.read_text())
    return result


def mean_of(run: Path, qrels: Qrels) -> dict[str, Any]:
    """nDCG@10 of a run that is compared with none."""
    values = ndcg(str(run), qrels)
    return {"mean": fmean(values), "interval": bootstrap_interval(values)}


def ndcg(run: str, qrels: Qrels) -> list[float]:
    """nDCG@10 of each judged query, in the order of the judgements; 0 where the run lacks it."""
    return read_system(run, run, qrels, parse_measures(["nDCG@10"])).values("nDCG@10")


def retained(name: str, runs: Path) -> dict[str, Any]:
    """What a row still knows, and how much more of it than the base and than direct SFT: question by question."""
    own = Retention.load(runs / "measured" / name / DETAILS)
    figures = own.figures()
    for over, prefix in (("base", ""), ("direct", "over_direct.")):
        details = runs / "measured" / over / DETAILS
        if details.exists() and name not in ("base", over):
            differences = flat(paired_retention(Retention.load(details), own))
            figures |= {f"{prefix}{figure}": value for figure, value in differences.items()}
    return figures
