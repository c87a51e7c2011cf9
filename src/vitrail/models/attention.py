"""Scaled dot-product attention in the formulation that is fastest where it is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vitrail.models.recorded import is_recorded

NARROW = 16
"""Numbers of a head below which a CPU does better without PyTorch's fused attention, and in float32 at that."""
AFFORDED = 4
"""How many times the memory of queries, keys and values the scores may take."""


def attend(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"], scale: float | None = None
) -> Float[Tensor, "b h n d"]:
    """Return softmax(q k^T scale) v, where scale is 1 / sqrt(d) unless it is given.

    On CPUs PyTorch's fused attention takes two to six times as long in bfloat16 as two products with a softmax between
    them, and longer too for narrow heads.
    """
    (n, d), m = q.shape[-2:], k.shape[-2]
    may_differ = q.is_cpu and n * m <= AFFORDED * (n + 2 * m) * d and not is_recorded()
    factor = d**-0.5 if scale is None else scale
    if may_differ and d < NARROW and q.dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            return _unfused(q.float(), k.float(), v.float(), factor).to(q.dtype)
    if may_differ and q.dtype == torch.bfloat16:
        return _unfused(q, k, v, factor)
    return scaled_dot_product_attention(q, k, v, scale=scale)


def _unfused(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    return ((q * factor) @ k.transpose(-2, -1)).softmax(-1) @ v
