"""Files in any layout that can be told by its first row."""

from pathlib import Path
from typing import Any

from data_modules.records import RankingRecord
from data_modules.sources.base import OnError, Row, Source, existing_file, parse_object, read_array, read_lines
from data_modules.sources.candidates import CandidatesSource
from data_modules.sources.conversations import ConversationsSource
from data_modules.sources.messages import MessagesSource
from data_modules.sources.own import JsonlSource
from data_modules.sources.preferences import PairsSource
from data_modules.sources.rank_llm import RankLLMSource
from lit_rerank.errors import UserError


def open_source(path: str | Path, on_error: OnError = "raise") -> Source[Any]:
    """The source of training data in a file; what is none of the others' is taken for candidates.

    Raises:
        UserError: where the first row is of none of them. With `on_error` 'skip', it is the first that can be
            read, if any can.
    """
    _, row = _first_row(path, on_error)
    if row is None:
        row = next((item for item in read_array(existing_file(path)) if isinstance(item, dict)), None)
    for name, layout in (("chosen", PairsSource), ("messages", MessagesSource), ("conversations", ConversationsSource)):
        if row is not None and name in row:
            return layout(path, on_error)
    if row is not None and "text" in row and not row.keys() & {"passages", "candidates", "hits", "query"}:
        return MessagesSource(path, on_error)
    return open_candidates(path, on_error)


def open_candidates(path: str | Path, on_error: OnError = "raise") -> Source[RankingRecord]:
    """The source for the project's own records, candidates, or RankLLM's requests: whichever `path` holds.

    Raises:
        UserError: as open_source.
    """
    place, row = _first_row(path, on_error)
    if row is None:
        return RankLLMSource(path, on_error=on_error)
    if "passages" in row:
        return JsonlSource(path, on_error)
    if isinstance(row.get("query"), dict) or "hits" in row:
        return RankLLMSource(path, on_error=on_error)
    if "candidates" in row or not place:
        return CandidatesSource(path, on_error=on_error)
    raise UserError(
        f'{place}: has neither "candidates" nor "hits" (RankLLM) nor "passages" (the project\'s own layout)'
    )


def _first_row(path: str | Path, on_error: OnError) -> tuple[str, Row | None]:
    """Place and content of the first line that is not blank: nothing of an empty file, None of a JSON array."""
    file, wrong = existing_file(path), ""
    for place, line in read_lines(file):
        try:
            is_array = line.lstrip().startswith(b"[") and not wrong and ".jsonl" not in file.suffixes
            return place, None if is_array else parse_object(line)
        except UserError as error:
            wrong = wrong or f"{place}: {error}"
            if on_error == "raise":
                break
    if wrong:
        raise UserError(wrong)
    return "", {}
