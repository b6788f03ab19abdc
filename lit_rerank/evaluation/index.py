"""`evaluate.py index`: a collection in, a Lucene index out."""

import time
from typing import Any

from data_modules.catalogue import open_collection
from lit_rerank.evaluation.report import keep_apart, report


def index_collection(collection: str, index: str, metrics: str) -> dict[str, Any]:
    """Build a Lucene index of a collection, to be searched as --collection pyserini:INDEX (needs Pyserini and Java).

    Args:
        collection: as rerank takes it, or a file of documents (JSONL as Pyserini's JsonCollection reads it).
        index: the folder to make.
        metrics: the JSON file to write: how many documents there are, how many have no text and are left out.
    """
    from data_modules.lucene import build_index

    keep_apart({"metrics": metrics}, [collection])
    documents = open_collection(collection).documents
    started = time.perf_counter()
    built = build_index(documents.values(), index)
    result = {
        "documents": len(built),
        "without_text": len(documents) - len(built),
        "seconds": round(time.perf_counter() - started, 2),
    }
    report(result, metrics)
    return result
