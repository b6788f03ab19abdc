"""`evaluate.py index`: a collection in, a Lucene index out."""

import time
from typing import Any

from data_modules.catalogue import open_documents
from data_modules.files import new_folder, user_path
from lit_rerank.errors import UserError
from lit_rerank.evaluation.report import keep_apart, report


def index_collection(collection: str, index: str, metrics: str) -> dict[str, Any]:
    """Build a Lucene index of a collection, to be searched as --collection pyserini:INDEX@TOPICS.

    It needs Pyserini and Java.

    Args:
        collection: as rerank takes it, queries not needed, or a file of documents (JSONL as Pyserini's JsonCollection
            reads it).
        index: the folder to make.
        metrics: the JSON file to write: how many documents there are, how many have no text and are left out.
    """
    from data_modules.lucene import build_index

    folder, file = new_folder(index), user_path(metrics)
    if folder.resolve() in (file.resolve(), *file.resolve().parents):
        raise UserError(f"metrics: {metrics} would stand where the index {index} shall be; name a file elsewhere")
    keep_apart({"metrics": metrics}, [collection])
    documents = open_documents(collection)
    started = time.perf_counter()
    built = build_index(documents.values(), folder)
    result = {
        "documents": len(built),
        "without_text": len(documents) - len(built),
        "seconds": round(time.perf_counter() - started, 2),
    }
    report(result, metrics)
    return result
