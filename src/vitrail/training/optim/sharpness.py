"""Sharpness-aware minimization (SAM, Foret et al. 2021): the gradient a small way uphill from the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import get_total_norm

SMALLEST_NORM = 1e-12
"""Added to the norm of the gradient, so that a gradient of zeros moves nothing."""


@contextmanager
def ascend(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights by `rho` along their gradient, the whole of which has one norm, and back to the very bits.

    The gradient is that of the whole batch, summed over micro-batches and ranks, so all ranks move
    alike. Where it is not finite, neither are the weights in between, nor what is computed with
    them.
    """
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        step = rho / (get_total_norm(gradients) + SMALLEST_NORM)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter += gradient * step
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weights in zip(trained, before, strict=True):
                parameter.copy_(weights)
