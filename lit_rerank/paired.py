"""What a model has lost: two measurements of retention, question by question.

Differences are after minus before. Their 95 % intervals are bootstrapped over questions, and over documents for bits
per byte; of one alone it is the difference twice, and nothing is judged. Only where the base does better than chance
(see `above_chance`) can anything be lost, so only there is a difference judged.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lit_rerank.errors import UserError
from lit_rerank.intervals import bootstrap_interval

if TYPE_CHECKING:
    from lit_rerank.measurement import Retention

ACCURACIES = ("acc", "acc_cloze")
OF_QUESTIONS = (*ACCURACIES, "answer_logprob", "answer_margin")
MEASURES = (*OF_QUESTIONS, "bits_per_byte")
LOWER_IS_BETTER = ("bits_per_byte",)
CHOICES = 4
ALPHA = 0.05

Differences = dict[str, dict[str, Any]]


class HasId(Protocol):
    """A question or a document, answered or not."""

    @property
    def id(self) -> str: ...


def above_chance(measure: str, found: "Retention") -> float:
    """The p-value of the hypothesis that a measurement is no better than chance, one-sided.

    Accuracies: a binomial test against 1/4. The others, t-tests over questions and documents: the right answer's margin
    over the wrong ones against 0; its log-likelihood, and bits per byte, against tokens that are all equally likely; of
    documents that were kept without that figure, against bytes (8 bits each).
    """
    from scipy.stats import binomtest, ttest_1samp

    if measure in ACCURACIES:
        right = [getattr(question, measure) for question in found.questions]
        return float(binomtest(int(sum(right)), len(right), 1 / CHOICES, alternative="greater").pvalue)
    if measure == "answer_logprob":
        gains = [question.answer_logprob - question.chance for question in found.questions]
    elif measure == "answer_margin":
        gains = [question.answer_margin for question in found.questions]
    else:
        chances = [8 * d.bytes if d.chance is None else d.chance for d in found.documents]
        gains = [(chance - d.bits) / d.bytes for chance, d in zip(chances, found.documents, strict=True)]
    if len(set(gains)) < 2:
        return 1.0
    return float(ttest_1samp(gains, 0, alternative="greater").pvalue)


def paired(before: "Retention", after: "Retention") -> Differences:
    """How each measure differs: {measure: {before, after, difference, low, high, p_chance, judged, lost}}.

    `p_chance` is `above_chance` of `before`; `judged`: whether it is below 0.05; `lost`: whether it is judged and the
    whole interval is on the worse side of 0.

    Raises:
        UserError: if the two have asked different questions, with different examples, or read different documents.
    """
    check_same(before, after.questions, after.documents, after.examples)
    figures = before.figures(), after.figures()
    return {
        measure: _difference(measure, before, after, *(f[measure] for f in figures))
        for measure in MEASURES
        if measure in figures[0]
    }


def check_same(
    before: "Retention",
    questions: "Sequence[HasId]",
    documents: "Sequence[HasId]",
    examples: Sequence[str] | None,
) -> None:
    """Raise a UserError unless a measurement was of these questions and documents, in this order, and with these
    examples (their ids; of either, None: not told, and not compared)."""
    for what, others in {"questions": questions, "documents": documents}.items():
        if [item.id for item in getattr(before, what)] != [item.id for item in others]:
            raise UserError(f"the two measurements are of different {what}: they cannot be compared")
    if before.examples is not None and examples is not None and tuple(examples) != before.examples:
        raise UserError(
            f"the two measurements have different examples before their questions ({len(before.examples)} and "
            f"{len(examples)} in all): they cannot be compared; set fewshot alike"
        )


def beyond(differences: Differences, max_drop: Mapping[str, float]) -> list[str]:
    """The measures whose whole interval is more than so much on the worse side, or no number, among those judged."""
    return [
        measure
        for measure, drop in max_drop.items()
        if measure in differences and differences[measure]["judged"] and not _least_drop(measure, differences) <= drop
    ]


def flat(differences: Differences) -> dict[str, Any]:
    """As figures of one level: `difference.acc_cloze`, `.low`, `.high`; what is judged, what not, and what is lost."""
    figures = {
        name: value
        for measure, d in differences.items()
        for name, value in (
            (f"difference.{measure}", d["difference"]),
            (f"difference.{measure}.low", d["low"]),
            (f"difference.{measure}.high", d["high"]),
        )
    }
    judged = [measure for measure, d in differences.items() if d["judged"]]
    return figures | {
        "judged": judged,
        "not_judged_base_at_chance": [measure for measure in differences if measure not in judged],
        "lost": [measure for measure, d in differences.items() if d["lost"]],
    }


def _least_drop(measure: str, differences: Differences) -> float:
    """The end of the interval that is kinder to the model, as a loss."""
    found = differences[measure]
    return float(found["low"] if measure in LOWER_IS_BETTER else -found["high"])


def _difference(measure: str, before: "Retention", after: "Retention", old: float, new: float) -> dict[str, Any]:
    if measure == "bits_per_byte":
        changes = [b.bits - a.bits for a, b in zip(before.documents, after.documents, strict=True)]
        interval = bootstrap_interval(changes, [document.bytes for document in before.documents])
    else:
        pairs = zip(before.questions, after.questions, strict=True)
        interval = bootstrap_interval([getattr(b, measure) - getattr(a, measure) for a, b in pairs])
    low, high = interval or (new - old, new - old)
    p = above_chance(measure, before)
    found = {"before": old, "after": new, "difference": new - old, "low": low, "high": high, "p_chance": p}
    judged = p < ALPHA
    found |= {"judged": judged, "lost": judged and not _least_drop(measure, {measure: found}) <= 0}
    return found
