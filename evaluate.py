"""Evaluate: python evaluate.py rerank --help; see README.md."""

from lit_rerank.cli import evaluate, installed_packages_first

if __name__ == "__main__":
    installed_packages_first()
    evaluate()
