"""The tables that `make results` writes, as Markdown."""

from typing import Any

from lit_rerank.comparison.significance import show_p
from lit_rerank.intervals import show_interval
from scripts.rows import COLUMNS, ROWS, title_of

KEPT = {
    "answer_logprob": "answer log-likelihood",
    "answer_margin": "its margin",
    "bits_per_byte": "bits a byte",
    "acc_cloze": "MMLU cloze",
    "acc": "MMLU letters",
}


def table(compared: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]]) -> str:
    """What is measured as Markdown, a line a row: nDCG@10 with intervals, what is kept with those of its change.

    Of MMLU's two forms, the row that nothing is compared with has the p-values of being no better than chance.
    """
    columns = [column for column in COLUMNS if column in compared]
    lines = [
        "| " + " | ".join(["", *map(title_of, columns), *KEPT.values()]) + " |",
        "|---" * (1 + len(columns) + len(KEPT)) + "|",
    ]
    first_stage = [_mean(compared[column][column.partition(".")[0]]) for column in columns]
    lines.append("| " + " | ".join(["first stage", *first_stage, *[""] * len(KEPT)]) + " |")
    for name in (row for row in ROWS if row in kept or any(row in systems for systems in compared.values())):
        cells = [ROWS[name].title, *(_mean(compared[column].get(name)) for column in columns)]
        cells += [_kept(kept.get(name), measure) for measure in KEPT]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(compared: dict[str, dict[str, Any]]) -> str:
    """Each row over the first stage, over itself where it slid alone and over direct SFT as Markdown, with intervals
    and p-values, which are corrected (Benjamini-Hochberg) for all that are compared with the same on the same lists,
    read in the same way."""
    lines = ["| list | row | over | nDCG@10 | p | corrected |", "|---" * 6 + "|"]
    for column, systems in compared.items():
        for name, figures in ((name, systems[name]) for name in ROWS if name in systems):
            for over in (column.partition(".")[0], "sliding", "direct"):
                found = figures.get(f"over_{over}")
                if found is not None:
                    change = f"{found['difference']:+.4f} ({show_interval(found['interval'], '+.3f')})"
                    tests = f"{show_p(found['p'])} | {show_p(found['p_corrected'])}"
                    lines.append(f"| {title_of(column)} | {ROWS[name].title} | {over} | {change} | {tests} |")
    return "\n".join(lines) + "\n"


def kept_over_direct(kept: dict[str, dict[str, Any]]) -> str:
    """Each row's differences from direct SFT in what is kept, as Markdown; of bits a byte, fewer are better."""
    lines = ["| " + " | ".join(["over direct SFT", *KEPT.values()]) + " |", "|---" * (1 + len(KEPT)) + "|"]
    for name, figures in kept.items():
        if f"over_direct.difference.{next(iter(KEPT))}" in figures:
            cells = [_change(figures, f"over_direct.difference.{measure}") for measure in KEPT]
            lines.append("| " + " | ".join([ROWS[name].title, *cells]) + " |")
    return "\n".join(lines) + "\n"


def trainings(trained: dict[str, dict[str, float]]) -> str:
    """What each training took, and the choice loss of its first and last steps beside guessing's, as Markdown."""
    lines = ["| training | steps | tokens | minutes | choice loss (guessing), at first | at last |", "|---" * 6 + "|"]
    for name, took in trained.items():
        losses = [
            f"{took[f'choice_loss.{part}']:.3f} ({took[f'guessing.{part}']:.3f})" if "choice_loss.last" in took else ""
            for part in ("first", "last")
        ]
        lines.append(f"| {name} | {took['steps']} | {took['tokens']:,.0f} | {took['minutes']} | {' | '.join(losses)} |")
    return "\n".join(lines) + "\n"


def _mean(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return ""
    return f"{figures['mean']:.4f} ({show_interval(figures['interval'], '.3f')})"


def _kept(figures: dict[str, Any] | None, measure: str) -> str:
    if figures is None:
        return ""
    if f"difference.{measure}" in figures:
        return _change(figures, f"difference.{measure}")
    chance = f"{measure}_p_chance"
    return f"{figures[measure]:.4f}" + (f" (p = {figures[chance]:.3f})" if chance in figures else "")


def _change(figures: dict[str, Any], change: str) -> str:
    return f"{figures[change]:+.4f} ({figures[f'{change}.low']:+.4f} to {figures[f'{change}.high']:+.4f})"
