"""The systems that are compared: TREC runs by name, measured query by query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.trec import Ranking, read_run
from lit_rerank.errors import UserError

Judgements = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class System:
    """A run, and what it is worth.

    Attributes:
        run: rankings by qid, in trec_eval's order.
        scores: by qid and measure, of every judged query; 0 where the run lacks it, as `trec_eval -c` has it.
        missing: the judged queries that the run lacks.
        unjudged: the run's queries without judgements: they do not count.
    """

    name: str
    path: str
    run: Mapping[str, Ranking]
    scores: Mapping[str, Mapping[str, float]]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]

    def values(self, measure: str) -> list[float]:
        """A measure of each judged query, in the order of the judgements."""
        return [scores[measure] for scores in self.scores.values()]


def read_system(name: str, path: str, qrels: Judgements, measures: Sequence[Any]) -> System:
    """Read a run and measure it; `measures` are ir-measures'.

    Raises:
        UserError: where it is broken, or none of its queries is judged.
    """
    from lit_rerank.measures import per_query

    run = read_run(path)
    unjudged = tuple(qid for qid in run if qid not in qrels)
    if len(unjudged) == len(run):
        raise UserError(
            f"none of the {len(run)} queries of {path} is judged: are run and judgements of one collection?"
        )
    found = per_query(run, qrels, measures)
    nothing = {str(measure): 0.0 for measure in measures}
    scores = {qid: found.get(qid, nothing) for qid in qrels}
    return System(name, path, run, scores, tuple(qid for qid in qrels if qid not in run), unjudged)


def named_files(words: Sequence[str]) -> dict[str, str]:
    """Files by their names: of `NAME=FILE` the first part, of `FILE` its name without the suffix.

    Raises:
        UserError: where two would have one name.
    """
    files: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():  # folders have such names, too: lr=1e-4/run.txt
            name, path = Path(word).stem, word
        if not name or not path:
            raise UserError(f"{word!r}: write FILE or NAME=FILE")
        if name in files:
            raise UserError(f"{files[name]} and {path} are both called {name!r}: write NAME={path}")
        files[name] = path
    return files
