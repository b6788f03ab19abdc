"""Candidates in any layout that can be told by its first row."""

from pathlib import Path

from data_modules.records import RankingRecord
from data_modules.sources.base import Source, existing_file, parse_object, read_lines
from data_modules.sources.candidates import CandidatesSource
from data_modules.sources.own import JsonlSource
from data_modules.sources.rank_llm import RankLLMSource
from lit_rerank.errors import UserError


def open_candidates(path: str | Path) -> Source[RankingRecord]:
    """The source for the project's own records, candidates, or RankLLM's requests: whichever `path` holds.

    Raises:
        UserError: where the first row is none of them.
    """
    place, line = next(read_lines(existing_file(path)), ("", b""))
    if line.lstrip().startswith(b"["):
        return RankLLMSource(path)
    if not line:
        return CandidatesSource(path)
    try:
        row = parse_object(line)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if "passages" in row:
        return JsonlSource(path)
    if isinstance(row.get("query"), dict) or "hits" in row:
        return RankLLMSource(path)
    if "candidates" in row:
        return CandidatesSource(path)
    raise UserError(
        f'{place}: has neither "candidates" nor "hits" (RankLLM) nor "passages" (the project\'s own layout)'
    )
