"""Linear layers in the formulation that is fastest where they are computed."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.functional import conv2d, linear


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
        return multiply_by_convolution(input, self.weight, self.bias)


def multiply_by_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `linear(input, weight, bias)`, as oneDNN computes it: by a 1x1 convolution."""
    n, d = weight.shape
    # (1, d, rows, 1), with channels last in memory
    rows = input.reshape(1, -1, 1, d).permute(0, 3, 1, 2)
    products = conv2d(rows, weight[:, :, None, None], bias)
    return products.permute(0, 2, 3, 1).reshape(*input.shape[:-1], n)


def is_recorded() -> bool:
    """Say whether `torch.export` or `torch.jit.trace` makes this call: programs keep to what all machines do well."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def is_symbolic(value: object) -> bool:
    """Say whether torch.fx traces a call, as extractors of torchvision and timm do.

    A value has neither size nor device then.
    """
    return isinstance(value, Proxy)


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
        not is_symbolic(input)
        and input.is_cpu
        and input.dtype == torch.float32
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not is_recorded()
    )
