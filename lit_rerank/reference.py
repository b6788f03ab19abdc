"""The frozen model that DPO compares with, behind one interface.

After SFT with adapters the reference is the *SFT adapter*; the bare base model (adapter off) is the right one only
where training starts from a fresh adapter. One copy of the base weights serves both wherever adapters allow it.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rerank.backbone import BackboneSettings, DType, add_adapter, is_adapted, load_model
from lit_rerank.errors import UserError
from lit_rerank.frozen import frozen, modes_kept
from lit_rerank.packing import Packed
from lit_rerank.scoring import token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "reference"

Origin = dict[str, str]
Weights = tuple[str, str | None, bool]  # model, adapter, whether in 4 bits

_PIECE = 2**20


class Reference(ABC):
    """Log-probabilities of the model that training started from: no gradients, no dropout."""

    @abstractmethod
    def attach(self, policy: "PreTrainedModel", settings: BackboneSettings) -> None:
        """Bind to the policy's model, once, before training.

        Raises:
            UserError: if this kind of reference does not fit how the policy is trained.
        """

    @abstractmethod
    def token_logps(self, packed: Packed) -> Tensor:
        """The reference's answers to `packed`: (questions,) nats, float32.

        The policy is left as it was, with its own adapter active and trainable: gradient checkpointing recomputes with
        whatever is active in the backward pass.
        """

    def weights(self, settings: BackboneSettings) -> Weights:
        """Which weights answer: by default those that training starts from."""
        return settings.model, settings.adapter, settings.load_in_4bit

    def origin(self, settings: BackboneSettings) -> Origin:
        """The same by what they hold, whatever they are called, and their dtype."""
        return _origin(*self.weights(settings), settings.dtype)

    def save(self) -> None:  # noqa: B027
        """Keep on disk what is worth keeping (see `Precomputed`)."""


class FrozenAdapter(Reference):
    """A frozen copy of an adapter beside the trained one, on the same base weights.

    Args:
        adapter: directory; by default the adapter that training starts from.
    """

    def __init__(self, adapter: str | None = None) -> None:
        self.adapter = adapter

    def attach(self, policy: "PreTrainedModel", settings: BackboneSettings) -> None:
        adapter = self.adapter or settings.adapter
        if adapter is None or not is_adapted(policy):
            raise UserError(
                "the reference FrozenAdapter needs an adapter: set backbone.adapter to SFT's, "
                "or choose another reference (AdapterOff, SeparateModel)"
            )
        self.policy: Any = policy
        with modes_kept(policy):  # PEFT puts the whole model into eval mode
            add_adapter(policy, adapter, REFERENCE)

    def weights(self, settings: BackboneSettings) -> Weights:
        return settings.model, self.adapter or settings.adapter, settings.load_in_4bit

    def token_logps(self, packed: Packed) -> Tensor:
        trained = self.policy.active_adapter
        try:
            # Without inference_mode PEFT would make the frozen copy trainable. Switching back freezes what is inactive.
            self.policy.set_adapter(REFERENCE, inference_mode=True)
            with frozen(self.policy):
                return token_logps(self.policy, packed)
        finally:
            self.policy.set_adapter(trained)


class AdapterOff(Reference):
    """The base model under a fresh adapter: right where SFT was full fine-tuning, or was merged into the base."""

    def attach(self, policy: "PreTrainedModel", settings: BackboneSettings) -> None:
        if not is_adapted(policy):
            raise UserError("the reference AdapterOff needs backbone.tune: lora; choose SeparateModel")
        if settings.adapter is not None:
            raise UserError(
                f"training starts from the adapter {settings.adapter}: with the adapter off, the reference would be "
                "the bare base model; choose FrozenAdapter"
            )
        self.policy: Any = policy

    def token_logps(self, packed: Packed) -> Tensor:
        with self.policy.disable_adapter(), frozen(self.policy):
            return token_logps(self.policy, packed)


class SeparateModel(Reference):
    """A second, frozen model: for full fine-tuning.

    Args:
        model: id or directory; by default the model that training starts from.
        adapter: an adapter on top of it; by default, with the default model, the one training starts from.
        dtype: of its weights.
        load_in_4bit: whether to quantise it; by default as the policy.
    """

    def __init__(
        self,
        model: str | None = None,
        adapter: str | None = None,
        dtype: DType | None = None,
        load_in_4bit: bool | None = None,
    ) -> None:
        self.model, self.adapter, self.dtype, self.load_in_4bit = model, adapter, dtype, load_in_4bit

    def attach(self, policy: "PreTrainedModel", settings: BackboneSettings) -> None:
        model, adapter, load_in_4bit = self.weights(settings)
        self.separate = load_model(
            model,
            adapter,
            load_in_4bit=load_in_4bit,
            dtype=self.dtype or settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        ).eval()

    def origin(self, settings: BackboneSettings) -> Origin:
        return _origin(*self.weights(settings), self.dtype or settings.dtype)

    def weights(self, settings: BackboneSettings) -> Weights:
        return (
            self.model or settings.model,
            self.adapter or (settings.adapter if self.model is None else None),
            settings.load_in_4bit if self.load_in_4bit is None else self.load_in_4bit,
        )

    def token_logps(self, packed: Packed) -> Tensor:
        with frozen(self.separate):
            return token_logps(self.separate.to(packed.ids.device), packed)


class Precomputed(Reference):
    """Log-probabilities kept on disk, so that further runs on the same data need no reference model at all.

    Each is found by a hash of its context and token: what the data or the format changes is not found. Beside them
    stands which weights answered; without `of`, they must be those that training starts from.

    Args:
        path: directory of the stored values.
        of: the reference that answers what is not stored yet; without one that is an error.
    """

    def __init__(self, path: str, of: Reference | None = None) -> None:
        self.path, self.of = Path(path), of

    def attach(self, policy: "PreTrainedModel", settings: BackboneSettings) -> None:
        self.made_by = self.origin(settings)
        self.values: dict[int, float] = {}
        self.new: dict[int, float] = {}
        if self.of is not None:
            self.of.attach(policy, settings)
        elif not self.path.is_dir():
            raise UserError(f"there are no precomputed reference values at {self.path}: set reference.of to make them")
        for part in sorted(self.path.glob("*.safetensors")):
            self._read(part)

    def weights(self, settings: BackboneSettings) -> Weights:
        return self.of.weights(settings) if self.of else super().weights(settings)

    def origin(self, settings: BackboneSettings) -> Origin:
        return self.of.origin(settings) if self.of else super().origin(settings)

    def token_logps(self, packed: Packed) -> Tensor:
        keys = _keys(packed)
        if any(key not in self.values for key in keys):
            if self.of is None:
                raise UserError(
                    f"the precomputed reference values at {self.path} lack some of this batch's: the data, the "
                    "tokenizer or the format is not the one they were made with; set reference.of to add them"
                )
            answers = dict(zip(keys, self.of.token_logps(packed).tolist(), strict=True))
            unknown = {key: logp for key, logp in answers.items() if key not in self.values}
            self.new |= unknown
            self.values |= unknown
        return torch.tensor([self.values[key] for key in keys], dtype=torch.float32, device=packed.ids.device)

    def save(self) -> None:
        """Write what was answered since the last call; every process writes files of its own."""
        from safetensors.torch import save_file

        if self.new:
            keys = torch.tensor(list(self.new))
            name = hashlib.blake2b(keys.numpy().tobytes(), digest_size=8).hexdigest()
            self.path.mkdir(parents=True, exist_ok=True)
            unfinished = self.path / f"{name}.{os.getpid()}.tmp"
            tensors = {"keys": keys, "logps": torch.tensor(list(self.new.values()))}
            save_file(tensors, unfinished, {"origin": json.dumps(self.made_by)})
            unfinished.rename(self.path / f"{name}.safetensors")
            self.new = {}

    def _read(self, part: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(part, "pt") as file:
                told = json.loads((file.metadata() or {})["origin"])
                origin = {what: told[what] for what in self.made_by}
                keys, logps = file.get_tensor("keys").tolist(), file.get_tensor("logps").tolist()
            found = dict(zip(keys, logps, strict=True))
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{part} holds no precomputed reference values: delete it") from error
        stale = " and another ".join(what for what, now in self.made_by.items() if origin[what] != now)
        if stale:
            raise UserError(
                f"the precomputed reference values in {part} are stale: they were made with another {stale}; "
                "delete them, or set reference.path to another directory"
            )
        self.values.update(found)


def _keys(packed: Packed) -> list[int]:
    """A 64-bit hash of each question's context and token; a token's context is its parent's and the parent."""

    def digest(context: bytes, token: int, size: int = 16) -> bytes:
        return hashlib.blake2b(context + token.to_bytes(8, "big"), digest_size=size).digest()

    contexts: list[bytes] = []
    for parent, token in zip(packed.parents, packed.ids.tolist(), strict=True):
        contexts.append(digest(contexts[parent] if parent >= 0 else b"", token))
    questions = zip(packed.place.tolist(), packed.token.tolist(), strict=True)
    return [int.from_bytes(digest(contexts[place], token, 8), "big", signed=True) for place, token in questions]


def _origin(model: str, adapter: str | None, load_in_4bit: bool, dtype: DType) -> Origin:
    return {
        "model": identity(model),
        "adapter": "none" if adapter is None else identity(adapter),
        "quantisation": "NF4" if load_in_4bit else "none",
        "dtype": dtype,
    }


def identity(name: str) -> str:
    """The Hugging Face id, or a hash of what the directory holds, for directories are written anew."""
    kinds = ("*.safetensors", "*.bin", "*config.json", "tokenizer*", "*.jinja")
    files = sorted({file for kind in kinds for file in Path(name).glob(kind) if file.is_file()})
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as opened:  # the whole of it: training may have changed some layers only
            while piece := opened.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest() if files else name
