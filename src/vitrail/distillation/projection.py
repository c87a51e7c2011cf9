"""The projections of a student's features into its teacher's space: trained with it, left out of weight files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.distillation.tokens import Grid
from vitrail.models.family import VisionModel

NAME = "teacher_projection"
"""Name of that of the vector within the head, whose parameters it so belongs to."""
OF_TOKENS = "teacher_token_projection"
"""Name of that of the tokens, there too."""


def add_projection(
    model: VisionModel, num_features: int, grid: Grid | None = None, channels: int = 0
) -> nn.Module:
    """Let a model in training project its features to a teacher's; return the head, which keeps them.

    Args:
        model: The student.
        num_features: Numbers of the teacher's vector, to which the one that the head reads is
            projected.
        grid: The student's last map, where its tokens are projected too.
        channels: Channels of the teacher's map, to which they are.
    """
    head, device = model.get_classifier(), next(model.parameters()).device
    head.add_module(NAME, nn.Linear(model.num_features, num_features).to(device))
    source = None
    if grid is not None:
        head.add_module(OF_TOKENS, nn.Linear(grid.channels, channels).to(device))
        source = model.get_submodule(grid.module)
        source.register_forward_hook(_keep)
    head.register_forward_pre_hook(_Projecting(source, grid))
    return head


def take_projected(head: Any) -> Float[Tensor, "b all"]:
    """Return the projected features of the batch that was computed last, once."""
    projected = head.projected
    head.projected = None  # or the activations would be kept
    assert isinstance(projected, Tensor)
    return projected


def project(
    head: nn.Module, vectors: Tensor, tokens: Float[Tensor, "b n d"] | None
) -> Float[Tensor, "b all"]:
    """Return the projected vector of each image, and behind it its projected tokens, where they are given."""
    projected = head.get_submodule(NAME)(vectors.flatten(1))
    if tokens is None:
        return projected
    return torch.cat([projected, head.get_submodule(OF_TOKENS)(tokens).flatten(1)], 1)


def without_projection(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model without its projections."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if f".{NAME}." not in name and f".{OF_TOKENS}." not in name
    }


@dataclass
class _Projecting:
    """What a head does before it computes, in training.

    The module that it takes tokens from is copied with it, where the whole model is: an average of
    the weights has its own.
    """

    source: Any
    """The module that has kept what the last map is in; None where no tokens are projected."""
    grid: Grid | None

    def __call__(self, head: Any, inputs: tuple[Tensor, ...]) -> None:
        if not head.training:
            return
        tokens = None
        if self.grid is not None:
            tokens = self.grid.read(self.source.kept_features)
            self.source.kept_features = None
        head.projected = project(head, inputs[0], tokens)


def _keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Keep what a module gives in training, until the head projects it."""
    if module.training:
        module.kept_features = output
