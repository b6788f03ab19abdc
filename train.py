"""Train: python train.py fit --config configs/... ; see README.md."""

from lit_rerank.cli import train

if __name__ == "__main__":
    train()
