"""The few layers that more than one family uses.

Shapes
    b images, n tokens, d channels, c image channels, h and w pixels, k kernel side
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from vitrail.kernels.linear import Linear
from vitrail.models.family import gelu


class DropPath(nn.Module):
    """Zero whole rows of the first dimension with probability `rate`, and scale the others up (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.draw(x)
        return x if factors is None else x * factors

    def draw(self, x: Tensor) -> Tensor | None:
        """Draw the factor of each row, 0 or 1 / (1 - rate); None where all rows are kept as they are."""
        if self.rate == 0 or not self.training:
            return None
        keep = 1 - self.rate
        return x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def draw_twice(self, x: Tensor) -> Tensor | None:
        """Draw the factors of two residuals (2, rows), one after the other; None where all rows are kept."""
        first, second = self.draw(x), self.draw(x)
        if first is None or second is None:
            return None
        return torch.stack([first.flatten(), second.flatten()])

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        gelu_kind: Literal["erf", "tanh"],
        drop_rate: float = 0.0,
        *,
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.fc1 = Linear(dim, hidden_dim)
        self.act = gelu(gelu_kind)
        self.fc2 = Linear(hidden_dim, dim, bias=last_bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = drop(self.act(self.fc1(x)), self.drop_rate, self.training)
        return drop(self.fc2(x), self.drop_rate, self.training)


def are_plain(parts: Sequence[nn.Module], kinds: Sequence[type[nn.Module]]) -> bool:
    """Say whether all layers of some parts are those that were built, drop nothing, and nobody looks at them.

    Args:
        parts: Modules that a fused operator may stand for.
        kinds: Classes of what they were built of; an adapter in the place of a layer is none.
    """
    layers = [layer for part in parts for layer in part.modules()]
    if any(type(layer) not in kinds for layer in layers):
        return False
    if any(layer.training and getattr(layer, "drop_rate", 0) for layer in layers):
        return False
    return not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def bias_of(layer: Linear) -> Tensor:
    """Return the bias of a layer, zeros where it has none."""
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias


def drop(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply dropout in training; without a rate there is nothing to call, to trace or to draw."""
    return dropout(x, rate) if rate and training else x


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return the rate of each block, from 0 at the first to `rate` at the last."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()
