"""Evaluate: python evaluate.py rerank --help; see README.md."""

from lit_rerank.cli import evaluate

if __name__ == "__main__":
    evaluate()
