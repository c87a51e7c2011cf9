"""Weight files of tiny models in the names and kinds of file of every project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.models.dialects import Dialect, write_names
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.loading import open_model
from vitrail.weights.request import LoadRequest

SHARED = Path(__file__).parents[3] / "shared" / "golden"
"""Files of other projects that lie beside the repository, where they do."""
MINDSPORE_TINY = {
    "image_size": 32, "patch_size": 16, "embed_dim": 48, "inner_dim": 12, "depth": 2, "num_heads": 3,
    "inner_num_heads": 2,
}  # fmt: skip

EXAMPLES = {
    "tnt_s_patch16_224": ("official", "timm", "mindcv"),
    "tnt_s_legacy_patch16_224": ("timm", "mmpretrain"),
    "t2t_vit_7": ("official", "zoo"),
    "t2t_vit_t_14": ("official", "mmpretrain", "zoo"),
    "twins_svt_small": ("official", "mmpretrain", "mindcv", "zoo"),
    "twins_pcpvt_small": ("official", "mmpretrain", "mindcv", "zoo"),
}
"""Each architecture, and the projects that have it."""


def tiny_options(name: str) -> dict[str, Any]:
    return {key: value for key, value in find_variant(name)[0].tiny.items() if key != "num_classes"}


def tiny(name: str, **overrides: Any) -> VisionModel:
    """Return a small model whose every weight differs from its initial one, where it is trained at all."""
    torch.manual_seed(0)
    model = create_model(name, **{**find_variant(name)[0].tiny, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def dialect_of(project: str, name: str) -> Dialect:
    config = find_variant(name)[1].config
    return next(
        dialect
        for dialect in find_variant(name)[0].dialects
        if project in dialect.projects and all(getattr(config, key) == value for key, value in dialect.only.items())
    )


def theirs(weights: Mapping[str, Tensor], project: str, name: str) -> dict[str, Tensor]:
    """Return weights as a project names and lays them out."""
    links, _ = write_names(weights, dialect_of(project, name))
    return {
        key: tensor
        for link in links
        for key, tensor in zip(link.theirs, link.how.write([weights[n] for n in link.ours]), strict=True)
    }


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def opened(path: Path, name: str, **wanted: Any) -> Any:
    options = {**tiny_options(name), **wanted.pop("options", {})}
    return open_model(path, LoadRequest(model=name, options=options, **wanted))
