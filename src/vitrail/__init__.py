"""Vision transformers that look inside the patch: TNT, T2T-ViT, Twins and PyramidTNT."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.api.attention import attention as attention
    from vitrail.api.bench import bench as bench
    from vitrail.api.data import check_data as check_data
    from vitrail.api.data import pack as pack
    from vitrail.api.data import resize_data as resize_data
    from vitrail.api.deploy import convert as convert
    from vitrail.api.deploy import export as export
    from vitrail.api.deploy import quantize as quantize
    from vitrail.api.depth import measure_depth as measure_depth
    from vitrail.api.embedding import embed as embed
    from vitrail.api.evaluation import evaluate as evaluate
    from vitrail.api.evaluation import sweep_preprocess as sweep_preprocess
    from vitrail.api.explanation import explain as explain
    from vitrail.api.explanation_scores import score_explanations as score_explanations
    from vitrail.api.finetuning import finetune as finetune
    from vitrail.api.inference import predict as predict
    from vitrail.api.inference import write_inputs as write_inputs
    from vitrail.api.models import create_model as create_model
    from vitrail.api.models import list_models as list_models
    from vitrail.api.models import load_model as load_model
    from vitrail.api.models import register_family as register_family
    from vitrail.api.pretraining import pretrain as pretrain
    from vitrail.api.preview import preview as preview
    from vitrail.api.reproduction import reproduce as reproduce
    from vitrail.api.serving import serve as serve
    from vitrail.api.token_labels import make_token_labels as make_token_labels
    from vitrail.api.training import bench_data as bench_data
    from vitrail.api.training import doctor as doctor
    from vitrail.api.training import show_config as show_config
    from vitrail.api.training import train as train
    from vitrail.api.tuning import tune as tune
    from vitrail.api.verify import verify as verify
    from vitrail.api.weights import add_weights as add_weights
    from vitrail.api.weights import fetch_weights as fetch_weights
    from vitrail.api.weights import list_weights as list_weights
    from vitrail.errors import VitrailError as VitrailError

# loaded on first use: `import torch` takes seconds, and `vitrail --help` needs none of it
_PUBLIC = {
    "VitrailError": "vitrail.errors",
    "add_weights": "vitrail.api.weights",
    "attention": "vitrail.api.attention",
    "bench": "vitrail.api.bench",
    "bench_data": "vitrail.api.training",
    "check_data": "vitrail.api.data",
    "convert": "vitrail.api.deploy",
    "create_model": "vitrail.api.models",
    "doctor": "vitrail.api.training",
    "embed": "vitrail.api.embedding",
    "evaluate": "vitrail.api.evaluation",
    "explain": "vitrail.api.explanation",
    "measure_depth": "vitrail.api.depth",
    "score_explanations": "vitrail.api.explanation_scores",
    "export": "vitrail.api.deploy",
    "fetch_weights": "vitrail.api.weights",
    "finetune": "vitrail.api.finetuning",
    "list_models": "vitrail.api.models",
    "list_weights": "vitrail.api.weights",
    "load_model": "vitrail.api.models",
    "make_token_labels": "vitrail.api.token_labels",
    "pack": "vitrail.api.data",
    "predict": "vitrail.api.inference",
    "pretrain": "vitrail.api.pretraining",
    "preview": "vitrail.api.preview",
    "quantize": "vitrail.api.deploy",
    "register_family": "vitrail.api.models",
    "reproduce": "vitrail.api.reproduction",
    "resize_data": "vitrail.api.data",
    "serve": "vitrail.api.serving",
    "show_config": "vitrail.api.training",
    "sweep_preprocess": "vitrail.api.evaluation",
    "train": "vitrail.api.training",
    "tune": "vitrail.api.tuning",
    "verify": "vitrail.api.verify",
    "write_inputs": "vitrail.api.inference",
}
__all__ = [
    "VitrailError",
    "add_weights",
    "attention",
    "bench",
    "bench_data",
    "check_data",
    "convert",
    "create_model",
    "doctor",
    "embed",
    "evaluate",
    "explain",
    "export",
    "fetch_weights",
    "finetune",
    "list_models",
    "list_weights",
    "load_model",
    "make_token_labels",
    "measure_depth",
    "pack",
    "predict",
    "pretrain",
    "preview",
    "quantize",
    "register_family",
    "reproduce",
    "resize_data",
    "score_explanations",
    "serve",
    "show_config",
    "sweep_preprocess",
    "train",
    "tune",
    "verify",
    "write_inputs",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        from vitrail.errors import suggest

        # programs that look for a special name, such as __wrapped__, need no advice
        near = "" if name.startswith("_") else suggest(name, _PUBLIC)
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}{near}", name=name)
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
