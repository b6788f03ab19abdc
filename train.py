"""Train: python train.py fit --config configs/... ; see README.md."""

from lit_rerank.cli import installed_packages_first, train

if __name__ == "__main__":
    installed_packages_first()
    train()
