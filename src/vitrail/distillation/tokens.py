"""The last map of a network, as tokens on a grid: where a student's comes from, and a teacher's brought to it.

Targets of a teacher's features are standardised: each vector and each token has mean 0 and variance
1 over its channels, by a layer norm without weights. Features of different networks are so of one
scale, and a few large channels do not decide the loss (Wei et al. 2022, https://arxiv.org/abs/2205.14141,
who call it whitening). That they are met through a linear layer is of FitNets (Romero et al. 2015).

Shapes
    b images, n tokens of the student's grid, d channels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm
from torch.utils.hooks import RemovableHandle

from vitrail.errors import ConfigError
from vitrail.models.family import VisionModel


@dataclass(frozen=True)
class Grid:
    """The last map of a network, and the module that gives it."""

    module: str
    """Name of the module whose output is what `forward_features` returns."""
    channels: int
    size: tuple[int, int]
    """Height and width in tokens."""
    layout: Literal["tokens", "channels first", "channels last"]

    @property
    def n(self) -> int:
        """Tokens of an image."""
        return self.size[0] * self.size[1]

    def read(self, features: Tensor) -> Float[Tensor, "b n d"]:
        """Return the tokens of what `forward_features` returns, without those that stand before the map."""
        if self.layout == "tokens":
            return features[:, -self.n :]
        if self.layout == "channels last":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)


def find_grid(model: VisionModel, name: str) -> Grid:
    """Find where the last map of a student is computed, with a black image.

    Args:
        model: The student.
        name: What it is called.

    Raises:
        ConfigError: It has no map of its last level, as some models of timm.
    """
    refusal = ConfigError(
        f"distill.loss=tokens learns the last map of a network, and {name} gives none; set "
        "distill.loss=feature, or model.name to another"
    )
    if not model.feature_levels:
        raise refusal
    outputs: list[tuple[str, object]] = []

    def listen(module_name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(
            lambda one, inputs, output: outputs.append((module_name, output))
        )

    was_training = model.training
    model.eval()
    handles = [listen(module_name, module) for module_name, module in model.named_modules()]
    try:
        with torch.no_grad():
            parameter = next(model.parameters())
            image = parameter.new_zeros(1, model.config.in_channels, *model.config.size)
            features = model.forward_features(image)
            modules = [module_name for module_name, output in outputs if output is features]
            one = model.forward_intermediates(image, 1)[0]
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    channels, height, width = one.shape[1:]
    shape = tuple(features.shape[1:])
    if modules and shape == (channels, height, width):
        return Grid(modules[-1], channels, (height, width), "channels first")
    if modules and shape == (height, width, channels):
        return Grid(modules[-1], channels, (height, width), "channels last")
    is_sequence = len(shape) == 2 and shape[0] >= height * width and shape[1] == channels
    if not modules or not is_sequence:
        raise refusal
    return Grid(modules[-1], channels, (height, width), "tokens")


def standardise(features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Return features with mean 0 and variance 1 over their channels, each vector for itself."""
    return layer_norm(features, features.shape[-1:])


def make_targets(
    vectors: Float[Tensor, "b dv"], maps: Float[Tensor, "b d h w"], size: tuple[int, int]
) -> Float[Tensor, "b all"]:
    """Return what a student learns of a teacher's features: the standardised vector, then the tokens on its grid.

    Args:
        vectors: What the teacher's head reads.
        maps: The teacher's last map.
        size: Height and width of the student's grid, to which the map is resized: each token is the
            mean of those that it covers, or lies between its neighbours.
    """
    if tuple(maps.shape[2:]) != size:
        maps = interpolate(maps, size, mode="bilinear", antialias=True)
    tokens = standardise(maps.flatten(2).transpose(1, 2))
    return torch.cat([standardise(vectors), tokens.flatten(1)], 1)
