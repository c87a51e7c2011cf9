"""Tiny models whose weights are larger than fresh ones, so that their attention is not even."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model, find_variant

NAMES = (
    "tnt_ti_patch16_224",
    "tnt_s_legacy_patch16_224",
    "t2t_vit_7",
    "t2t_vit_t_14",
    "twins_svt_small",
    "twins_pcpvt_small",
    "ptnt_ti_patch16_192",
)
PYRAMID = NAMES[-1]


def build(name: str, **overrides: Any) -> VisionModel:
    """Return a tiny model in evaluation mode."""
    torch.manual_seed(0)
    model = create_model(name, **{**find_variant(name)[0].tiny, **overrides}).eval()
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if parameter.requires_grad:
                # a performer's features vanish for large queries, and their shares with them
                scale = 0.01 if place.startswith("tokens_to_token") else 0.1
                parameter.add_(scale * torch.randn_like(parameter))
    return model


def random_images(model: VisionModel, count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, *model.config.size)
