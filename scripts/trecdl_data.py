"""The training data of configs/recipes/trecdl.*.yaml, from TREC DL 2019 and 2022 and Cranfield, in data/trecdl.

Teachers' windows of DL 2019, lists of DL 2022 in SPLADE++ED's order, judged answers of Cranfield, pointing practice on
the passages of DL 2019, and questions and orders that the model makes for itself of both years' passages
(`scripts.self_taught`): train.jsonl.gz. What is harder is in lists.jsonl.gz and orders.jsonl.gz, to go on with: windows
whose passages have all been found for their question. In most of the former, one to three passages stand above others;
in the latter, more of the order is known. Some of the model's and of the teachers' orders are in all three. DL 2021, on
which models are measured, gives nothing to learn from; `make results` alone makes two files of it, for an upper bound
and to be learned by heart.
"""

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from data_modules.catalogue import open_collection
from data_modules.records import Passage, RankingRecord, Window
from data_modules.sources import CandidatesSource, JudgedSource, PointingSource, TeacherWindowsSource
from data_modules.sources.base import existing_file, parse_object, read_lines, write_rows
from data_modules.sources.corpus import DocumentsSource
from data_modules.sources.own import JsonlSource, write_jsonl
from data_modules.sources.practice import Negatives, Queries
from lit_rerank.cli import in_one_line
from lit_rerank.errors import UserError
from scripts import self_taught

PAIRS, HELD_OUT = 2240, 64
DRAWN = {  # records
    "asked": 5400,
    "practice": 1800,
    "self_taught": 900,
    "teachers": 900,
    "splade": 400,
    "cranfield": 400,
}
LISTED = {"asked": 800, "self_taught": 850, "found": 800, "judged": 400, "teachers": 350}  # records of lists.jsonl.gz
IN_ORDER = {"asked": 200, "self_taught": 1500, "found": 1000, "judged": 350, "teachers": 350}  # of orders.jsonl.gz
BEST = 20  # of SPLADE++ED's list, which count as relevant
KNOWN = 6  # of a window's passages, at most, are ordered by SPLADE++ED; the order of the others is not known
ORDERED = 1700  # windows that the model orders; the first of them are in train.jsonl.gz and lists.jsonl.gz
ASKED = 3000  # passages; not every question is of use
OF_DL21 = ("judged", "few")  # the files of `write_judged`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the model that is to be trained")
    parser.add_argument("--data", type=Path, required=True, help="folder of dl19.teacher_windows.jsonl.gz, ...")
    parser.add_argument(
        "--lists",
        type=Path,
        required=True,
        help="folder of {dl19,dl22}.{bm25,splade_pp_ed}.top100.jsonl.gz and qrels.dl19.txt",
    )
    parser.add_argument("--cranfield", type=Path, required=True, help="folder of the collection")
    parser.add_argument("--out", type=Path, default=Path("data/trecdl"))
    args = parser.parse_args()
    write_data(args.model, args.data, args.lists, args.cranfield, args.out)


def write_data(model: str, data: Path, lists: Path, cranfield: Path, out: Path) -> None:
    """Write the files that the recipes read; orders.jsonl.gz is the last."""
    for name in ("dl19.teacher_windows", "dl19.passages"):
        existing_file(data / f"{name}.jsonl.gz")
    for year in ("dl19", "dl22"):
        for first_stage in ("bm25", "splade_pp_ed"):
            existing_file(lists / f"{year}.{first_stage}.top100.jsonl.gz")
    existing_file(lists / "qrels.dl19.txt")
    open_collection(str(cranfield))
    out.mkdir(parents=True, exist_ok=True)
    write_rows(documents(data, lists), out / "passages.jsonl.gz")
    self_taught.make(model, out / "passages.jsonl.gz", out / "self_taught", ASKED, ORDERED)
    self_ordered = list(JsonlSource(out / "self_taught" / "windows.jsonl.gz"))
    passages = str(data / "dl19.passages.jsonl.gz")
    sources: dict[str, Iterable[RankingRecord]] = {
        "asked": JudgedSource(str(out / "self_taught"), DRAWN["asked"], 2, 6, Negatives(near=0.25, siblings=0.0)),
        "practice": practice(passages),
        "self_taught": self_ordered[: DRAWN["self_taught"]],
        "teachers": teachers(data),
        "splade": splade(lists / "dl22.splade_pp_ed.top100.jsonl.gz"),
        "cranfield": JudgedSource(str(cranfield), DRAWN["cranfield"], 3, 8),
    }
    near = Negatives(near=1.0, siblings=0.0)
    listed: dict[str, Iterable[RankingRecord]] = {
        "asked": JudgedSource(str(out / "self_taught"), LISTED["asked"], 4, 8, near, seed=7),
        "self_taught": sources["self_taught"],
        "found": found(lists),
        "judged": judged(lists, "dl19"),
        "teachers": teachers(data),
    }
    in_order: dict[str, Iterable[RankingRecord]] = {
        "asked": JudgedSource(str(out / "self_taught"), IN_ORDER["asked"], 4, 8, near, seed=7),
        "self_taught": self_ordered,
        "found": chain(spread(lists, "dl19"), spread(lists, "dl22")),
        "judged": judged(lists, "dl19"),
        "teachers": teachers(data),
    }
    queries = Queries(span=0.3, sentence=0.7)
    pairs = list(PointingSource(passages, PAIRS + HELD_OUT, queries=queries))
    write_files(
        {
            "pointing": pairs[:PAIRS],
            "pointing.val": pairs[PAIRS:],
            "train": drawn(sources, DRAWN),
            "lists": drawn(listed, LISTED),
            "orders": drawn(in_order, IN_ORDER),
        },
        out,
    )


def write_judged(lists: Path, out: Path) -> None:
    """Write judged.jsonl.gz and few.jsonl.gz, of DL 2021: for an upper bound, and to be learned by heart."""
    out.mkdir(parents=True, exist_ok=True)
    graded = list(judged(lists, "dl21"))
    write_files(dict(zip(OF_DL21, (graded, few(graded)), strict=True)), out)


def write_files(files: Mapping[str, Sequence[RankingRecord]], out: Path) -> None:
    for name, written in files.items():
        write_jsonl(written, out / f"{name}.jsonl.gz")
        print(f"{out / name}.jsonl.gz: {len(written)} records")


def drawn(sources: Mapping[str, Iterable[RankingRecord]], wanted: Mapping[str, int]) -> list[RankingRecord]:
    """As many of each source's records as are wanted, at random."""
    taken: list[RankingRecord] = []
    for name, source in sources.items():
        records = list(source)
        if len(records) < wanted[name]:
            raise UserError(
                f"{name}: there are {len(records)} records, and {wanted[name]} are wanted "
                "(where an older version has left files of these, remove them)"
            )
        taken += random.Random(name).sample(records, wanted[name])
    return taken


def documents(data: Path, lists: Path) -> Iterator[dict[str, str]]:
    """The passages of DL 2019's windows and DL 2022's lists."""
    known = {passage.docid: passage.text for passage in DocumentsSource(data / "dl19.passages.jsonl.gz")}
    for first_stage in ("bm25", "splade_pp_ed"):
        for record in CandidatesSource(lists / f"dl22.{first_stage}.top100.jsonl.gz"):
            known |= {passage.docid: passage.text for passage in record.passages}
    return ({"docid": docid, "text": text} for docid, text in known.items())


def judged(lists: Path, year: str, of_each: int = 10, size: int = 8, depth: int = 30) -> Iterator[RankingRecord]:
    """Windows from the upper part of a year's lists: up to one passage of each grade, above others of grade 0 or which
    nobody judged."""
    for first_stage in ("bm25", "splade_pp_ed"):
        path = lists / f"{year}.{first_stage}.top100.jsonl.gz"
        for record in CandidatesSource(path, depth=depth, qrels=lists / f"qrels.{year}.txt", teacher="qrels"):
            of_grade: dict[int, list[int]] = {}
            for place, grade in enumerate(Window.of(record, range(len(record.passages))).grades or ()):
                of_grade.setdefault(max(grade, 0), []).append(place)
            others = of_grade.pop(0, [])
            for number in range(of_each if of_grade and others else 0):
                draw = random.Random(f"{first_stage}/{record.qid}/{number}")
                grades = draw.sample(sorted(of_grade), draw.randint(1, len(of_grade)))
                relevant = [draw.choice(of_grade[grade]) for grade in grades]
                places = relevant + draw.sample(others, min(size - len(relevant), len(others)))
                window = Window.of(record, draw.sample(places, len(places)))
                name = f"{record.qid}:{first_stage}:{number}"
                yield RankingRecord(name, record.query, window.passages, window.permutation, len(relevant))


def few(records: Iterable[RankingRecord], count: int = 16) -> list[RankingRecord]:
    """So many, of as many queries: to be learned by heart."""
    of_query: dict[str, RankingRecord] = {}
    for record in records:
        of_query.setdefault(record.query, record)
    return list(of_query.values())[:count]


def teachers(data: Path) -> Iterator[RankingRecord]:
    """The well-formed answers: a repaired one is less the teacher's than the repair's."""
    source = TeacherWindowsSource(data / "dl19.teacher_windows.jsonl.gz", data / "dl19.passages.jsonl.gz")
    wellformed = (parse_object(line).get("wellformed", True) for _, line in read_lines(source.windows))
    return (record for record, well in zip(source, wellformed, strict=True) if well)


def splade(path: Path, of_each: int = 20, size: int = 20, depth: int = 60) -> Iterator[RankingRecord]:
    """So many windows of each query, drawn from the upper part of its list, in the list's order."""
    for record in CandidatesSource(path, depth=depth, teacher="first_stage"):
        unlike = _without_copies(record)
        for number in range(of_each):
            draw = random.Random(f"{record.qid}/{number}")
            places = sorted(draw.sample(unlike, min(size, len(unlike))))
            window = Window.of(record, places)
            yield RankingRecord(f"{record.qid}:{number}", record.query, window.passages, window.permutation)


def found(lists: Path, of_each: int = 20, size: int = 8, depth: int = 60) -> Iterator[RankingRecord]:
    """Windows of what BM25 finds in DL 2022: one to three of SPLADE++ED's best 20, in its order, above others whose
    text it does not find, from the upper part of BM25's list."""
    better = {record.qid: record for record in CandidatesSource(lists / "dl22.splade_pp_ed.top100.jsonl.gz")}
    for record in (record for record in CandidatesSource(lists / "dl22.bm25.top100.jsonl.gz") if record.qid in better):
        passages, unlike = record.passages, _without_copies(record)
        rank = {passage.text: place for place, passage in reversed([*enumerate(better[record.qid].passages)])}
        good = [place for place in unlike if rank.get(passages[place].text, BEST) < BEST]
        others = [place for place in unlike if place < depth and passages[place].text not in rank]
        for number in range(of_each if good and others else 0):
            draw = random.Random(f"{record.qid}/{number}")
            relevant = draw.sample(good, min(draw.randint(1, 3), len(good)))
            relevant.sort(key=lambda place: rank[passages[place].text])
            order = relevant + draw.sample(others, min(size - len(relevant), len(others)))
            best_first = [passages[place] for place in order]
            yield _shown(f"{record.qid}:found:{number}", record.query, best_first, len(relevant), draw)


def spread(lists: Path, year: str, of_each: int = 20, size: int = 8, depth: int = 60) -> Iterator[RankingRecord]:
    """Windows in SPLADE++ED's order of up to six that it finds, each at twice the rank of the one above it or further
    down, above others that it does not find, from the upper part of BM25's list. Every second window has of the former
    only what BM25 finds, too: in the others, words in common may tell what stands below."""
    better = {record.qid: record for record in CandidatesSource(lists / f"{year}.splade_pp_ed.top100.jsonl.gz")}
    for record in (r for r in CandidatesSource(lists / f"{year}.bm25.top100.jsonl.gz") if r.qid in better):
        best = better[record.qid]  # the same docid may have other text there
        known, own = ({passage.text for passage in some.passages} for some in (best, record))
        ranks = _without_copies(best)
        both = [rank for rank in ranks if best.passages[rank].text in own]
        upper = [record.passages[place] for place in _without_copies(record) if place < depth]
        ids = {passage.docid for passage in best.passages}
        others = [passage for passage in upper if passage.text not in known and passage.docid not in ids]
        for number in range(of_each):
            draw = random.Random(f"{record.qid}/{number}")
            pool = both if number % 2 else ranks
            some = draw.sample(pool, min(2 * size, len(pool)))  # few of which are so far apart
            relevant = [best.passages[rank] for rank in apart(some)][:KNOWN]
            order = relevant + draw.sample(others, min(size - len(relevant), len(others)))
            if not relevant or len(order) == len(relevant):
                continue
            yield _shown(f"{record.qid}:found:{number}", record.query, order, len(relevant), draw)


def _shown(name: str, query: str, order: Sequence[Passage], known: int, draw: random.Random) -> RankingRecord:
    """Passages that are named best first, in random order."""
    shown = draw.sample(range(len(order)), len(order))
    permutation = tuple(shown.index(place) + 1 for place in range(len(order)))
    return RankingRecord(name, query, tuple(order[place] for place in shown), permutation, known)


def apart(places: Iterable[int]) -> list[int]:
    """Those of the places, from the first on, whose rank (place + 1) is at least twice that of the one taken before."""
    taken: list[int] = []
    for place in sorted(places):
        if not taken or place + 1 >= 2 * (taken[-1] + 1):
            taken.append(place)
    return taken


def _without_copies(record: RankingRecord) -> list[int]:
    """The places of passages whose text stands nowhere further up: between copies there is nothing to learn."""
    first: dict[str, int] = {}
    for place, passage in enumerate(record.passages):
        first.setdefault(passage.text, place)
    return list(first.values())


def practice(passages: str) -> Iterable[RankingRecord]:
    """Sentences that are cut out of the passage which they are to lead back to, and a few of its words."""
    queries = Queries(span=0.5, sentence=1.0, first=0.5, words=2.0)
    return PointingSource(passages, DRAWN["practice"], queries=queries, min_size=2, max_size=6, seed=1)


if __name__ == "__main__":
    in_one_line(main)
