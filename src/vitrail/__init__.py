"""Vision transformers that look inside the patch: TNT, T2T-ViT and Twins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.errors import VitrailError as VitrailError
    from vitrail.models.registry import create_model as create_model
    from vitrail.models.registry import list_models as list_models
    from vitrail.weights.loading import load_model as load_model

# loaded on first use: `import torch` takes seconds, and `vitrail --help` needs none of it
_PUBLIC = {
    "create_model": "vitrail.models.registry",
    "list_models": "vitrail.models.registry",
    "load_model": "vitrail.weights.loading",
    "VitrailError": "vitrail.errors",
}
__all__ = ["VitrailError", "create_model", "list_models", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
