"""Vision transformers that look inside the patch: TNT, T2T-ViT and Twins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.api.data import check_data as check_data
    from vitrail.api.data import pack as pack
    from vitrail.api.data import resize_data as resize_data
    from vitrail.api.deploy import convert as convert
    from vitrail.api.deploy import export as export
    from vitrail.api.deploy import quantize as quantize
    from vitrail.api.evaluation import evaluate as evaluate
    from vitrail.api.evaluation import sweep_preprocess as sweep_preprocess
    from vitrail.api.finetuning import finetune as finetune
    from vitrail.api.inference import bench as bench
    from vitrail.api.inference import predict as predict
    from vitrail.api.inference import verify as verify
    from vitrail.api.inference import write_inputs as write_inputs
    from vitrail.api.serving import serve as serve
    from vitrail.api.training import bench_data as bench_data
    from vitrail.api.training import doctor as doctor
    from vitrail.api.training import show_config as show_config
    from vitrail.api.training import train as train
    from vitrail.errors import VitrailError as VitrailError
    from vitrail.models.registry import create_model as create_model
    from vitrail.models.registry import list_models as list_models
    from vitrail.weights.loading import load_model as load_model

# loaded on first use: `import torch` takes seconds, and `vitrail --help` needs none of it
_PUBLIC = {
    "VitrailError": "vitrail.errors",
    "bench": "vitrail.api.inference",
    "bench_data": "vitrail.api.training",
    "check_data": "vitrail.api.data",
    "convert": "vitrail.api.deploy",
    "create_model": "vitrail.models.registry",
    "doctor": "vitrail.api.training",
    "evaluate": "vitrail.api.evaluation",
    "export": "vitrail.api.deploy",
    "finetune": "vitrail.api.finetuning",
    "list_models": "vitrail.models.registry",
    "load_model": "vitrail.weights.loading",
    "pack": "vitrail.api.data",
    "predict": "vitrail.api.inference",
    "quantize": "vitrail.api.deploy",
    "resize_data": "vitrail.api.data",
    "serve": "vitrail.api.serving",
    "show_config": "vitrail.api.training",
    "sweep_preprocess": "vitrail.api.evaluation",
    "train": "vitrail.api.training",
    "verify": "vitrail.api.inference",
    "write_inputs": "vitrail.api.inference",
}
__all__ = [
    "VitrailError",
    "bench",
    "bench_data",
    "check_data",
    "convert",
    "create_model",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "list_models",
    "load_model",
    "pack",
    "predict",
    "quantize",
    "resize_data",
    "serve",
    "show_config",
    "sweep_preprocess",
    "train",
    "verify",
    "write_inputs",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
