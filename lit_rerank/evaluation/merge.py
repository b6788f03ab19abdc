"""`evaluate.py merge`: a model and its adapter, at a chosen strength, written as one."""

import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from data_modules.files import new_folder
from lit_rerank.backbone import DType
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_adapter(
    model: str,
    adapter: str,
    out: str,
    scale: float = 1.0,
    keep_adapter: bool = False,
    dtype: DType = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Write a model with its adapter merged in, or an adapter, at a strength of choice.

    Args:
        model: Hugging Face id or directory, unquantised; also after training with load_in_4bit.
        adapter: PEFT adapter directory.
        out: the directory to write; Reranker.from_pretrained and evaluate.py load it.
        scale: strength of the adapter: 0 is the base model, 1 the adapter as trained.
        keep_adapter: write an adapter of this strength instead of the whole model.
        dtype: of the weights; merging rounds to it, float32 hardly at all.
        trust_remote_code: run code that the model's repository brings.
    """
    from lit_rerank.as_trained import SETTINGS_FILE, settings_file
    from lit_rerank.backbone import load_model, load_tokenizer
    from lit_rerank.scale import fold_scale
    from lit_rerank.whole import written_whole

    folder = new_folder(out)
    loaded: Any = load_model(model, adapter, dtype=dtype, trust_remote_code=trust_remote_code)
    if keep_adapter and scale != 1:
        fold_scale(loaded, scale)
    parts = [loaded] if keep_adapter else [merged(loaded, scale), load_tokenizer(model, trust_remote_code)]
    with written_whole(folder) as unfinished:
        for part in parts:
            part.save_pretrained(unfinished)
        if (known := settings_file(adapter)) is not None:  # of another program's adapter nothing is
            shutil.copyfile(known, unfinished / SETTINGS_FILE)
    print(f"{folder}: the {'adapter' if keep_adapter else 'model'} at scale {scale:g}")


def merged(model: "PreTrainedModel", scale: float = 1.0) -> "PreTrainedModel":
    """The model with its active adapter, at this strength, added to its weights; `model` itself is used up.

    Raises:
        UserError: if the adapter is of a kind that adds nothing to weights, if these are quantised or shared by what it
            changes and what it does not, or (at other strengths than 1) as `scaled`.
    """
    from lit_rerank.scale import scaled

    adapted: Any = model
    if scale == 1 and not hasattr(adapted, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise UserError(f"the adapter is of the kind {kind}, which cannot be merged: set keep_adapter to true")
    base = adapted.get_base_model()
    if getattr(base, "is_quantized", False):
        raise UserError(
            "the model's weights are quantised, and merging would round the adapter away: name the unquantised model"
        )
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.get_text_config().tie_word_embeddings and any(_is_adapted(end) for end in ends):
        raise UserError(
            "the adapter changes the head or the embeddings, which share their weights in this model: they cannot be "
            "merged; set keep_adapter to true"
        )
    try:
        with scaled(model, scale) if scale != 1 else nullcontext():
            whole: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        if not str(error).startswith(("Impossible to merge", "NaNs detected")):
            raise
        raise UserError(f"the adapter cannot be merged ({error}); set keep_adapter to true") from error
    return whole


def _is_adapted(layer: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
