"""The projection of a student's vectors into its teacher's space: trained with it, left out of weight files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitrail.models.family import VisionModel

NAME = "teacher_projection"
"""Its name within the head, whose parameters it so belongs to."""


def add_projection(model: VisionModel, num_features: int) -> nn.Module:
    """Let a model in training project what its head reads to so many numbers; return the head, which keeps them."""
    head = model.get_classifier()
    projection = nn.Linear(model.num_features, num_features)
    head.add_module(NAME, projection.to(next(head.parameters()).device))
    head.register_forward_pre_hook(_project)
    return head


def take_projected(head: Any) -> Tensor:
    """Return the projected vectors of the batch that was computed last, once."""
    projected = head.projected
    head.projected = None  # or the activations would be kept
    assert isinstance(projected, Tensor)
    return projected


def without_projection(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model without its projection."""
    return {name: tensor for name, tensor in weights.items() if f".{NAME}." not in name}


def _project(head: Any, inputs: tuple[Tensor, ...]) -> None:
    if head.training:
        head.projected = head.get_submodule(NAME)(inputs[0].flatten(1))
