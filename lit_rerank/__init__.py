"""Listwise LLM rerankers that think in steps: SFT and DPO on chains of choices."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_rerank.dpo import DPOModule
    from lit_rerank.reranker import Reranker
    from lit_rerank.retention_callback import RetentionCallback
    from lit_rerank.sft import SFTModule

__version__ = "0.1.0"
__all__ = ["DPOModule", "Reranker", "RetentionCallback", "SFTModule"]

_HOMES = {
    "DPOModule": "dpo",
    "SFTModule": "sft",
    "Reranker": "reranker",
    "RetentionCallback": "retention_callback",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the parts without torch stay light.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
