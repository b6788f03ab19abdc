"""A measurement of what a model still knows: question by question, document by document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_modules.sources.base import parse_object, read_lines, write_rows
from lit_rerank.errors import UserError
from lit_rerank.paired import OF_QUESTIONS, above_chance
from lit_rerank.questions import LETTERS


@dataclass(frozen=True)
class Answered:
    """A question, answered.

    Attributes:
        id, subject: the question's.
        letters, cloze: log-likelihood of each choice, in nats; of the cloze form, per character of the choice.
        answer: the right one (0 to 3).
        chance: what `cloze[answer]` would be if all of the model's tokens were equally likely.
    """

    id: str
    subject: str
    letters: tuple[float, ...]
    cloze: tuple[float, ...]
    answer: int
    chance: float

    @property
    def acc(self) -> float:
        return float(self.letters.index(max(self.letters)) == self.answer)

    @property
    def acc_cloze(self) -> float:
        return float(self.cloze.index(max(self.cloze)) == self.answer)

    @property
    def answer_logprob(self) -> float:
        return self.cloze[self.answer]

    @property
    def answer_margin(self) -> float:
        """How much likelier the right answer is than the wrong ones are in the mean: unlike `answer_logprob`, it is the
        same when all answers become less likely."""
        return self.answer_logprob - fmean(self.cloze[: self.answer] + self.cloze[self.answer + 1 :])


@dataclass(frozen=True)
class Read:
    """A document, read.

    Attributes:
        bits: minus its log-likelihood to the base 2.
        chance: what `bits` would be if all of the model's tokens were equally likely; None: not told.
    """

    id: str
    bits: float
    bytes: int
    chance: float | None = None


@dataclass(frozen=True)
class Retention:
    """A measurement: every question and every document.

    Attributes:
        truncated: prompts that lost their beginning, for with it they exceed the model's context.
        examples: ids of the answered questions that stood before those of their subject; None: not told.
    """

    questions: tuple[Answered, ...]
    documents: tuple[Read, ...] = ()
    truncated: int = 0
    examples: tuple[str, ...] | None = None

    def figures(self) -> dict[str, Any]:
        """What is reported.

        `acc` and `acc_cloze` (0 to 1) with standard error and the p-value of one-sided binomial tests against
        guessing (1/4), `answer_logprob` (mean over questions of the right answer's log-likelihood, nats per
        character), `answer_margin` (how much more that is than the wrong answers' mean), `bits_per_byte` (of all
        documents together), and how many of each.
        """
        figures: dict[str, Any] = {}
        if self.questions:
            for name in ("acc", "acc_cloze"):
                values = [getattr(question, name) for question in self.questions]
                figures[name] = fmean(values)
                figures[f"{name}_stderr"] = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
                figures[f"{name}_p_chance"] = above_chance(name, self)
            for name in ("answer_logprob", "answer_margin"):
                figures[name] = fmean(getattr(question, name) for question in self.questions)
            figures["n"] = len(self.questions)
            figures["subjects"] = len({question.subject for question in self.questions})
        if self.documents:
            figures["bits_per_byte"] = sum(d.bits for d in self.documents) / sum(d.bytes for d in self.documents)
            figures["documents"] = len(self.documents)
        return figures | {"truncated": self.truncated}

    def rows(self) -> list[dict[str, Any]]:
        """Every question and document, and at last how they were read, as JSON holds it."""
        asked = [vars(q) | {name: getattr(q, name) for name in OF_QUESTIONS} for q in self.questions]
        return [*asked, *map(vars, self.documents), {"truncated": self.truncated, "examples": self.examples}]

    def save(self, path: str | Path) -> None:
        """Write one JSON object a line, packed where the name ends in `.gz`.

        Raises:
            UserError: if a figure is no finite number.
        """
        try:
            write_rows(self.rows(), path)
        except ValueError as error:
            raise UserError(f"cannot write {path}: the model's log-likelihoods are no finite numbers") from error

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Retention":
        """The measurement that `rows` has told of.

        Those of earlier versions told nothing of examples, and of chance what random bytes would cost.
        """
        examples = next((r["examples"] for r in rows if "examples" in r), None)
        return cls(
            tuple(_answered(r) for r in rows if "answer" in r),
            tuple(_read(r) for r in rows if "bits" in r),
            sum(r["truncated"] for r in rows if "truncated" in r),
            None if examples is None else tuple(examples),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Retention":
        """What `save` has written.

        Raises:
            UserError: if it is something else.
        """
        try:
            return cls.of_rows([parse_object(line) for _, line in read_lines(Path(path))])
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} holds no measurement of retention: {error}") from error


def _answered(row: Mapping[str, Any]) -> Answered:
    letters, cloze = (tuple(map(float, row[form])) for form in ("letters", "cloze"))
    if not len(letters) == len(cloze) == len(LETTERS) or row["answer"] not in range(len(LETTERS)):
        raise UserError(f"question {row['id']} has not {len(LETTERS)} choices of which one is right")
    return Answered(row["id"], row["subject"], letters, cloze, row["answer"], float(row["chance"]))


def _read(row: Mapping[str, Any]) -> Read:
    chance = row.get("chance")
    return Read(row["id"], float(row["bits"]), int(row["bytes"]), None if chance is None else float(chance))
