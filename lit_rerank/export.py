"""What was trained, as PEFT and Hugging Face load it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from lit_rerank.as_trained import save_settings
from lit_rerank.backbone import is_adapted
from lit_rerank.modules import RerankModule
from lit_rerank.whole import written_whole


def export(module: RerankModule[Any], folder: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """Write what was trained as PEFT or Hugging Face loads it: `folder/adapter`, or (whole) `folder/model`.

    Args:
        weights: those that are trained, where the module has only pieces of them.
    """
    adapted = is_adapted(module.model)
    target = folder / ("adapter" if adapted else "model")
    with written_whole(target) as unfinished:
        unfinished.mkdir()
        if adapted:
            module.model.save_pretrained(unfinished, selected_adapters=["default"], state_dict=weights)
        else:
            module.model.save_pretrained(unfinished, state_dict=weights)
            module.encoder.chat.tokenizer.save_pretrained(unfinished)
        save_settings(module.prompt, module.reranking.reading, unfinished)
    return target
