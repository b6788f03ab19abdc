"""From any source to model-ready batches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_modules.permutation import PermutationDataModule
    from data_modules.preference import PreferenceDataModule

__all__ = ["PermutationDataModule", "PreferenceDataModule"]

_HOMES = {"PermutationDataModule": "permutation", "PreferenceDataModule": "preference"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the readers need neither torch nor Lightning.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
