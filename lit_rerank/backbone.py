"""Load a causal LM, whole or in 4 bits, with or without LoRA adapters; save what was trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lit_rerank.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tune = Literal["full", "lora"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


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


@dataclass
class BackboneSettings:
    """Which model is trained and how much of it.

    Attributes:
        model: Hugging Face id or directory.
        adapter: a PEFT adapter to start from (DPO starts from SFT's); needs `tune: lora`.
        tune: `lora` trains an adapter, `full` trains every weight.
        load_in_4bit: QLoRA (Dettmers et al. 2023): NF4 with double quantisation; needs `tune: lora`.
        dtype: of the frozen weights (and of 4-bit arithmetic); `auto` is what the checkpoint says.
        lora: shape of a new adapter.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        trust_remote_code: run code that the model's repository brings.
    """

    model: str
    adapter: str | None = None
    tune: Tune = "lora"
    load_in_4bit: bool = False
    dtype: DType = "auto"
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
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code))


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

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype}
    if load_in_4bit:
        options["quantization_config"] = _four_bits(dtype)
    with _named_errors("model", model):
        loaded = AutoModelForCausalLM.from_pretrained(model, **options)
    _keep_gradients_exact(loaded)
    if adapter is not None:
        from peft import PeftModel

        with _named_errors("adapter", adapter):
            loaded = PeftModel.from_pretrained(loaded, adapter, is_trainable=trainable)
    elif not trainable:
        loaded.requires_grad_(False)
    return cast("PreTrainedModel", loaded)


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
    return model.train()


def context_length(model: str, trust_remote_code: bool = False) -> int | None:
    """The context of a model (id or directory) in tokens, where its config says."""
    from transformers import AutoConfig

    with _named_errors("model", model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def trainable_parameters(module: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """What the optimizer changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def is_adapted(model: "PreTrainedModel") -> bool:
    """Whether an adapter sits on the model."""
    return hasattr(model, "peft_config")


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
    return cast("PreTrainedModel", get_peft_model(model, config))


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


class _named_errors:  # noqa: N801
    """Turns what Hugging Face raises for a wrong name into one line that names it."""

    def __init__(self, what: str, name: str) -> None:
        self.what, self.name = what, name

    def __enter__(self) -> None:
        path = Path(self.name)
        if path.is_absolute() or self.name.startswith(".") or self.name.count("/") != 1:
            if not path.is_dir():
                raise UserError(f"there is no {self.what} directory {self.name}")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError) and not isinstance(error, UserError):
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"cannot load the {self.what} {self.name!r}: {first_line}") from error
