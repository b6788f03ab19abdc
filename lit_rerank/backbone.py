"""Load a causal LM, whole or in 4 bits, with or without LoRA adapters; save what was trained."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, cast

from lit_rerank.errors import UserError, out_of_memory
from lit_rerank.processor import settle_functions, slow_bfloat16

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tune = Literal["full", "lora"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

COMPILATIONS = 512  # of a layer, at most

_HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


@dataclass
class LoraSettings:
    """LoRA (Hu et al. 2021) on the linear layers.

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: on the adapter's input.
        target_modules: names of layers, or `all-linear`.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"backbone.lora: r {self.r} must be at least 1, and dropout {self.dropout} in [0, 1)")


@dataclass
class BackboneSettings:
    """Which model is trained and how much of it.

    Attributes:
        model: Hugging Face id or directory.
        adapter: a PEFT adapter to start from (DPO starts from SFT's); needs `tune: lora`.
        tune: `lora` trains an adapter, `full` trains every weight.
        load_in_4bit: QLoRA (Dettmers et al. 2023): NF4 with double quantisation; needs `tune: lora`.
        dtype: of the frozen weights (and of 4-bit arithmetic); `auto` is what the checkpoint says, for 4-bit arithmetic
            bfloat16.
        compile: torch.compile each layer. Rows then have few lengths (see `compiled_length`), each of which is
            compiled once; meant for long runs in bfloat16 on GPUs and on CPUs with AMX.
        lora: shape of a new adapter.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        trust_remote_code: run code that the model's repository brings.
    """

    model: str
    adapter: str | None = None
    tune: Tune = "lora"
    load_in_4bit: bool = False
    dtype: DType = "auto"
    compile: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.tune == "full" and (self.load_in_4bit or self.adapter):
            wrong = "load_in_4bit" if self.load_in_4bit else "adapter"
            raise UserError(f"backbone.{wrong} trains an adapter: set backbone.tune to lora, or leave it out")


def load_tokenizer(model: str, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model (id or directory)."""
    from transformers import AutoTokenizer

    with _named_errors("tokenizer", model):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_model(
    model: str,
    adapter: str | None = None,
    *,
    load_in_4bit: bool = False,
    dtype: DType = "auto",
    trainable: bool = False,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """A causal LM with an adapter on top, if one is named; frozen unless `trainable`."""
    from transformers import AutoModelForCausalLM

    from lit_rerank.attention import PACKED

    settle_functions()
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype}
    loaded: Any
    found: Any
    if load_in_4bit:
        options["quantization_config"] = _four_bits(dtype)
    if (Path(model) / "adapter_config.json").is_file():
        raise UserError(f"{model} is an adapter: name it in backbone.adapter, and its base model in backbone.model")
    with _named_errors("model", model):
        loaded, found = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            model, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    misfits = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if misfits:  # they would be random numbers
        raise UserError(
            f"the weights of the model {model!r} do not fit its config.json: {misfits[0]} and {len(misfits) - 1} more "
            "are missing or have another shape"
        )
    _keep_gradients_exact(loaded)
    if loaded._supports_attention_backend and loaded.config._attn_implementation == "sdpa":
        loaded.set_attn_implementation(PACKED)
    if adapter is not None:
        return add_adapter(loaded, adapter, "default", trainable)
    return cast("PreTrainedModel", loaded if trainable else loaded.requires_grad_(False))


def load_for_inference(
    model: str,
    adapter: str | None = None,
    *,
    load_in_4bit: bool = False,
    dtype: DType = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """`load_model` in eval mode, on `device` (None: a GPU where there is one; 4-bit weights are placed already)."""
    import torch

    loaded = load_model(
        model, adapter, load_in_4bit=load_in_4bit, dtype=dtype, trust_remote_code=trust_remote_code
    ).eval()
    if load_in_4bit:
        return loaded
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    slow = slow_bfloat16(place, f"dtype {dtype}, weights in {loaded.dtype}")
    if slow is not None:
        warnings.warn(f"{slow}: set dtype to float32", stacklevel=2)
    return loaded.to(place)


def add_adapter(model: "PreTrainedModel", adapter: str, name: str, trainable: bool = False) -> "PreTrainedModel":
    """The model with a stored adapter put on it; one that it has already stays active.

    Raises:
        UserError: if there is none, if it was made for another model, or if it is a prompt and no change of weights.
    """
    from peft import PeftModel

    folder = Path(adapter)
    if folder.is_dir() and not all(any(folder.glob(file)) for file in ("adapter_config.json", "adapter_model.*")):
        raise UserError(f"the directory {adapter} holds no adapter (adapter_config.json, adapter_model.safetensors)")
    with _named_errors("adapter", adapter):
        adapted: Any = model
        if not is_adapted(model):
            adapted = PeftModel.from_pretrained(model, adapter, name, is_trainable=trainable)
        # Once more, where it is there already: only this call tells what found no place.
        loaded = adapted.load_adapter(adapter, name, is_trainable=trainable)
    kind = adapted.peft_config[name]
    if kind.is_prompt_learning:
        raise UserError(
            f"the adapter {adapter} learns what stands before a prompt ({kind.peft_type.value}): only adapters of "
            "weights are read, such as LoRA"
        )
    if loaded.missing_keys or loaded.unexpected_keys:
        raise UserError(f"the adapter {adapter} does not fit the model's layers: was it made for another model?")
    return cast("PreTrainedModel", adapted)


def load_backbone(settings: BackboneSettings) -> "PreTrainedModel":
    """The model of `settings`, ready to be trained."""
    model = load_model(
        settings.model,
        settings.adapter,
        load_in_4bit=settings.load_in_4bit,
        dtype=settings.dtype,
        trainable=settings.tune == "full" or settings.adapter is not None,
        trust_remote_code=settings.trust_remote_code,
    )
    if settings.tune == "lora" and settings.adapter is None:
        model = _new_adapter(model, settings.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if settings.compile:
        _compile_layers(model)
    return model.train()


def is_compiled(model: "PreTrainedModel") -> bool:
    """Whether the model's layers are compiled, each for every size of rows that it meets."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def context_length(model: str, trust_remote_code: bool = False) -> int | None:
    """The context of a model (id or directory) in tokens, where its config says.

    Where rotations depend on how long the row is (longrope), it is the length up to which they do not: what stands in
    one row, or in a cache, must be rotated alike.
    """
    from transformers import AutoConfig

    with _named_errors("model", model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original: int | None = rope.get("original_max_position_embeddings")
        return original or getattr(config, "original_max_position_embeddings", None)
    return getattr(config, "max_position_embeddings", None)


def trainable_parameters(module: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """What the optimizer changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def is_adapted(model: "PreTrainedModel") -> bool:
    """Whether an adapter sits on the model."""
    return hasattr(model, "peft_config")


def _compile_layers(model: "PreTrainedModel") -> None:
    """Layer by layer: they are alike, so that compiling takes seconds, where a whole model takes minutes."""
    import torch

    # Training and evaluation, policy and reference, the lengths of rows: each combination is compiled anew. Past these
    # limits nothing is compiled any more, without an error.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(COMPILATIONS, getattr(torch._dynamo.config, limit)))
    for layer in layers_of(model):
        layer.compile(dynamic=False)


def layers_of(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    """The model's layers.

    Raises:
        UserError: if it does not name them as most models of Hugging Face do.
    """
    body: Any = model.base_model.model if is_adapted(model) else model
    layers: torch.nn.ModuleList | None = getattr(body.base_model, "layers", None)
    if layers is None:
        raise UserError(
            f"{type(body).__name__} names its layers otherwise than most: backbone.compile and FSDP cannot find them"
        )
    return layers


def _new_adapter(model: "PreTrainedModel", lora: LoraSettings) -> "PreTrainedModel":
    from peft import LoraConfig, TaskType, get_peft_model

    modules = lora.target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    try:
        return cast("PreTrainedModel", get_peft_model(model, config))
    except (ValueError, re.error) as error:
        raise UserError(f"backbone.lora.target_modules: {error}") from error


def _four_bits(dtype: DType) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
    )


def _keep_gradients_exact(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes' CPU layers from repacking their weights at the first forward in eval mode.

    The repacked layers compute wrong gradients for whatever lies below them, silently; Lightning's sanity check
    would trigger it.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@contextmanager
def _named_errors(what: str, name: str) -> Iterator[None]:
    """Turns whatever Hugging Face raises for a wrong name or a broken directory into one line that names it.

    There is no telling what that is: JSON, safetensors, pickle and Rust all have errors of their own.
    """
    here = name != "" and Path(name).is_dir()
    # `models/x` beside a folder models/ is a mistyped directory; asking the hub for it would take half a minute.
    if not here and (not _HUB_ID.fullmatch(name) or Path(name).parent.is_dir()):
        thing = "adapter" if what == "adapter" else "model"
        raise UserError(f"there is no {thing} directory {name!r}, and a Hugging Face id has the form owner/name")
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        if "size mismatch" in reason:
            reason = f"was it made for another model? {reason}"
        elsewhere = "" if here else "there is no such directory, and from Hugging Face: "
        raise UserError(f"cannot load the {what} {name!r}: {elsewhere}{shorten(reason, 500)}") from error
