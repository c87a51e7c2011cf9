"""A linear layer that takes the faster of the two libraries by which PyTorch multiplies matrices on a CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from vitrail.models.recorded import is_recorded


def _mkl_is_narrow() -> bool:
    """Say whether MKL, which computes `linear` in float32, leaves half of the processor idle.

    It gives an AMD processor with AVX-512 what it gives one with AVX2; oneDNN, which computes convolutions, does not.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())


convolves = _mkl_is_narrow()
"""Whether `Linear` is a convolution in float32 on this machine's CPU."""


class Linear(nn.Linear):
    """An `nn.Linear` whose products are, in float32 on a CPU where that is faster, those of a 1x1 convolution.

    The two differ by the order of their sums. Exported programs have the linear layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the last dimension (..., in_features) to (..., out_features)."""
        if not convolves or not _may_convolve(input):
            return linear(input, self.weight, self.bias)
        d = input.shape[-1]
        rows = input.reshape(1, -1, 1, d).permute(0, 3, 1, 2)  # (1, d, rows, 1), with channels last in memory
        found = conv2d(rows, self.weight[:, :, None, None], self.bias)
        return found.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def _may_convolve(input: Tensor) -> bool:
    return (
        input.is_cpu
        and input.dtype == torch.float32
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not is_recorded()
    )
