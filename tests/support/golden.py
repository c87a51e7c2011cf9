"""Models under formula weights, and the numbers that the official code gives with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.formula import formula, golden_weight
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model

COMMITTED = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text())


def golden_model(name: str) -> VisionModel:
    model = create_model(name).eval()
    weights = {
        key: value if key.endswith(tuple(COMMITTED["kept"])) else golden_weight(key, tuple(value.shape))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model


def golden_images(height: int, width: int) -> Tensor:
    return torch.from_numpy(formula("image", (2, 3, height, width)).astype(np.float32))


def run(model: VisionModel) -> tuple[Tensor, Tensor, float, dict[str, float]]:
    """Return logits, features, the loss logsumexp(logits).mean() and the norm of its gradient by parameter."""
    features = model.forward_head(model.forward_features(golden_images(*model.config.size)), pre_logits=True)
    logits = model.head(features)
    loss = logits.logsumexp(dim=1).mean()
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), features.detach(), loss.item(), norms


def check_norms(found: dict[str, float], expected: dict[str, float]) -> None:
    wrong = {
        name: (found[name], norm)
        for name, norm in expected.items()
        # a norm that is zero but for rounding has no relative error
        if not math.isclose(found[name], norm, rel_tol=1e-3, abs_tol=1e-6)
    }
    assert wrong == {}
