"""What the tests of the reference share: where training starts from, and plain values to compare with."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_modules.records import Window
from lit_rerank.backbone import BackboneSettings, LoraSettings, load_backbone, trainable_parameters
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.preferences import Negatives
from lit_rerank.targets import PreferenceTargets
from tests.test_packing import ancestors
from tests.tiny import record, tiny_tokenizer

LORA = LoraSettings(r=4, alpha=16, dropout=0.2)


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.1) -> None:
    """Move what is trained by noise that depends on the seed alone."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def save_adapter(model: Path, directory: Path, seed: int) -> Path:
    adapted = load_backbone(BackboneSettings(str(model), lora=LORA))
    randomise(adapted, seed)
    adapted.save_pretrained(directory)
    return directory


def preferences(*qids: str) -> PreferenceTargets:
    encoder = WindowEncoder(tiny_tokenizer(), PromptSettings())
    batch = [
        Negatives.parse("all").example(encoder.encode(Window.of(record(qid, n), range(n))), encoder, None)
        for qid in qids
        for n in (2, 3, 4)
    ]
    return PreferenceTargets.build(batch)


def start(settings: str, model: Path, sft: Path, **options: Any) -> BackboneSettings:
    return BackboneSettings(
        str(model),
        adapter=str(sft) if settings == "sft" else None,
        tune="full" if settings == "full" else "lora",
        lora=LORA,
        **options,
    )


def separately_loaded(settings: BackboneSettings) -> PreTrainedModel:
    """The model that training starts from, with nothing of ours in between."""
    model = AutoModelForCausalLM.from_pretrained(settings.model)
    return (PeftModel.from_pretrained(model, settings.adapter) if settings.adapter else model).eval()


@torch.no_grad()
def values_of(model: PreTrainedModel, targets: PreferenceTargets) -> Tensor:
    """The answers, one context at a time from whole logits."""
    packed = targets.packed
    contexts = {place: packed.ids[ancestors(packed, place)][None] for place in set(packed.place.tolist())}
    whole = {place: model(ids).logits[0, -1].float().log_softmax(-1) for place, ids in contexts.items()}
    return torch.stack([whole[int(p)][t] for p, t in zip(packed.place, packed.token, strict=True)])
