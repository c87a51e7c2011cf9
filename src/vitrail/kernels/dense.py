"""Linear layers and attention in the formulation that is fastest where they are computed."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

NARROW_HEAD = 16
"""Channels of a head below which a CPU does better without PyTorch's fused attention, and in
float32 at that."""
MAX_SCORES = 4
"""How many times the memory of queries, keys and values the scores of unfused attention may
take."""


class Linear(nn.Linear):
    """An `nn.Linear` whose products are, in float32 on a CPU where that is faster, those of a 1x1 convolution.

    The two differ by the order of their sums. Exported programs have the linear layer.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.prefers_convolution = is_convolution_faster()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the last dimension (..., in_features) to (..., out_features)."""
        if not self.prefers_convolution or not _may_convolve(input):
            return linear(input, self.weight, self.bias)
        d = input.shape[-1]
        # (1, d, rows, 1), with channels last in memory
        rows = input.reshape(1, -1, 1, d).permute(0, 3, 1, 2)
        products = conv2d(rows, self.weight[:, :, None, None], self.bias)
        return products.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    scale: float | None = None,
) -> Float[Tensor, "b h n d"]:
    """Return softmax(q k^T scale) v, where scale is 1 / sqrt(d) unless it is given.

    On CPUs PyTorch's fused attention takes two to six times as long in bfloat16 as two products
    with a softmax between them, and longer too for narrow heads.
    """
    (n, d), m = q.shape[-2:], k.shape[-2]
    may_differ = q.is_cpu and n * m <= MAX_SCORES * (n + 2 * m) * d and not is_recorded()
    factor = d**-0.5 if scale is None else scale
    if may_differ and d < NARROW_HEAD and q.dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            return _attend_unfused(q.float(), k.float(), v.float(), factor).to(q.dtype)
    if may_differ and q.dtype == torch.bfloat16:
        return _attend_unfused(q, k, v, factor)
    return scaled_dot_product_attention(q, k, v, scale=scale)


def is_recorded() -> bool:
    """Say whether `torch.export` or `torch.jit.trace` makes this call: programs keep to what all machines do well."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@cache
def is_convolution_faster() -> bool:
    """Say whether 1x1 convolutions are faster than linear layers in float32 on this machine's CPU.

    PyTorch computes linear layers with MKL, which gives an AMD processor with AVX-512 what it gives
    one with AVX2; oneDNN, which computes convolutions, does not.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    processors = Path("/proc/cpuinfo")
    described = processors.read_text() if processors.exists() else platform.processor()
    return "AuthenticAMD" in described


def _may_convolve(input: Tensor) -> bool:
    return (
        input.is_cpu
        and input.dtype == torch.float32
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not is_recorded()
    )


def _attend_unfused(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    return ((q * factor) @ k.transpose(-2, -1)).softmax(-1) @ v
