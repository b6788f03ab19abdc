"""Small files for the tests of the sources."""

import gzip
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_lines(path: Path, *rows: Row | bytes) -> Path:
    """Write one line for each row: objects as JSON, bytes as they are; packed where the name ends in `.gz`."""
    lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def human_turn(query: str, *texts: str) -> str:
    """What the teacher was asked, as RankZephyr's training set has it."""
    n = len(texts)
    numbered = "\n".join(f"[{i}] {text}" for i, text in enumerate(texts, start=1))
    return (
        f"I will provide you with {n} passages, each indicated by a numerical identifier []. Rank the passages based "
        f"on their relevance to the search query: {query}.\n\n{numbered}\n\nSearch Query: {query}.\n\n"
        f"Rank the {n} passages above based on their relevance to the search query. All the passages should be "
        "included and listed using identifiers, in descending order of relevance. The output format should be "
        "[] > [], e.g., [4] > [2]. Only respond with the ranking results, do not say any word or explain."
    )


def conversation(human: str, gpt: str, qid: str | int = "q1") -> Row:
    """One conversation of RankZephyr's training set."""
    turns = [("system", "You are RankLLM."), ("human", human), ("gpt", gpt)]
    return {"id": qid, "conversations": [{"from": who, "value": value} for who, value in turns]}
