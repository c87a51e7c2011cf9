"""Linear layers in the formulation that is fastest where they are computed."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.functional import conv2d, linear
from torch.utils.flop_counter import register_flop_formula


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
        if torch.compiler.is_compiling():
            return convolved_linear(input, self.weight, self.bias)
        return multiply_by_convolution(input, self.weight, self.bias)


def multiply_by_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `linear(input, weight, bias)`, as oneDNN computes it: by a 1x1 convolution."""
    products = conv2d(_as_map(input), weight[:, :, None, None], bias)
    return products.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


def _as_map(rows: Tensor) -> Tensor:
    """Return rows (..., d) as a map (1, d, rows, 1), with channels last in memory."""
    return rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)


@torch.library.custom_op("vitrail::linear", mutates_args=())
def convolved_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `multiply_by_convolution`, as one operator for `torch.compile`.

    Inductor chooses layouts for convolutions that it sees, and loses by copies what they gain.
    """
    return multiply_by_convolution(input, weight, bias).contiguous()


@torch.library.custom_op("vitrail::linear_backward", mutates_args=())
def convolved_linear_backward(
    grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias; an empty tensor for each that is not wanted."""
    found = torch.ops.aten.convolution_backward(
        _as_map(grad),
        _as_map(input),
        weight[:, :, None, None],
        [len(weight)],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        wanted,
    )
    of_input, of_weight, of_bias = found
    if of_input is not None:
        of_input = of_input.permute(0, 2, 3, 1).reshape(input.shape).contiguous()
    if of_weight is not None:
        of_weight = of_weight.reshape(weight.shape).contiguous()
    grads = [of_input, of_weight, of_bias]
    for place, is_wanted in enumerate(wanted):
        if not is_wanted:
            grads[place] = input.new_empty(0)
    first, second, third = grads
    return first, second, third


@convolved_linear.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(*input.shape[:-1], len(weight))


@convolved_linear_backward.register_fake
def _(
    grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [input.shape, weight.shape, (len(weight),)]
    for place, is_wanted in enumerate(wanted):
        if not is_wanted:
            shapes[place] = (0,)
    first, second, third = map(input.new_empty, shapes)
    return first, second, third


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _ = inputs
    ctx.save_for_backward(input, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad)
    grads: list[Tensor | None] = [*convolved_linear_backward(grad, *ctx.saved_tensors, wanted)]
    for place, is_wanted in enumerate(wanted):
        if not is_wanted:
            grads[place] = None
    return tuple(grads)


convolved_linear.register_autograd(_differentiate, setup_context=_keep_inputs)


@register_flop_formula(torch.ops.vitrail.linear)
def count_flops(input: Sequence[int], weight: Sequence[int], *others: Any, **ignored: Any) -> int:
    """Return what `FlopCounterMode` counts of the linear layer, from the shapes of tensors."""
    return 2 * math.prod(input) * weight[0]


@register_flop_formula(torch.ops.vitrail.linear_backward)
def count_flops_backward(
    grad: Any, input: Sequence[int], weight: Sequence[int], wanted: Sequence[bool], **ignored: Any
) -> int:
    """Return what it counts of the gradients of input and weight that are wanted."""
    return count_flops(input, weight) * sum(wanted[:2])


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
