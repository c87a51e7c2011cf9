"""8-bit integers for the weights and inputs of linear layers and convolutions, in place of the floats of a model.

Weights have a scale for each output channel, and inputs one for all, from what they were on calibration images: what an
image is answered never depends on those beside it. Weights take 7 of the 8 bits, as processors that lack VNNI overflow
otherwise. All else stays in float: norms, softmax, GELU, the products within attention, and the performer of T2T-ViT,
whose exponentials would magnify what is rounded.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vitrail.models.family import VisionModel

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""What ONNX makes of the layers."""
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells ONNX Runtime that shapes are inferred already."""
BATCH = 8
"""Calibration images that are run at once."""


@dataclass(frozen=True, eq=False)
class Int8:
    """What of a model is to be in 8 bits."""

    layers: Sequence[str]
    images: Float[Tensor, "n c h w"]
    """Normalised, to find the ranges of inputs on."""


def quantizable(model: VisionModel) -> tuple[str, ...]:
    """Return the names of the linear layers and convolutions that may be in 8 bits."""
    apart = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, model.in_float))
    layers = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return tuple(name for name in layers if not name.startswith(apart or "\0"))


@torch.inference_mode()
def sensitivities(
    model: VisionModel, layers: Sequence[str], images: Float[Tensor, "n c h w"], advance: Callable[[], None]
) -> dict[str, float]:
    """Return how far logits move where one layer alone is rounded to 8 bits, as a share of how far they spread.

    Args:
        model: In float32, on the CPU.
        layers: From `quantizable`.
        images: Normalised.
        advance: Called after each layer.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            low, high = (float(edge) for edge in given[0].aminmax())
            ranges[name] = min(low, 0.0), max(high, 0.0)

        return see

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    exact = model(images)
    for hook in hooks:
        hook.remove()
    spread = float((exact - exact.mean(1, keepdim=True)).square().mean().sqrt())
    moved = {}
    for name in layers:
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        low, high = ranges[name]
        scale = max(high - low, 1e-12) / 255

        def rounded(_: nn.Module, given: tuple[Tensor, ...], low: float = low, scale: float = scale) -> Tensor:
            return torch.fake_quantize_per_tensor_affine(given[0].contiguous(), scale, round(-low / scale), 0, 255)

        steps = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 63
        zeros = torch.zeros(len(steps), dtype=torch.int32)
        coarse = torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -63, 63)
        hook = layer.register_forward_pre_hook(rounded)
        logits = functional_call(model, {f"{name}.weight": coarse}, images)
        hook.remove()
        moved[name] = float((logits - exact).square().mean().sqrt()) / max(spread, 1e-12)
        advance()
    return moved


def quantize_onnx(model: Any, wanted: Int8) -> Any:
    """Return a model of ONNX, whose nodes are named by the layers, with these in 8 bits."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._parts = ({"images": part} for part in _parts(wanted.images))

        def get_next(self) -> Any:
            return next(self._parts, None)

    entry = model.metadata_props.add()
    entry.key, entry.value = PREPARED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            model, path, Reader(),
            quant_format=QuantFormat.QDQ, op_types_to_quantize=list(PRODUCTS), nodes_to_quantize=list(wanted.layers),
            per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            },
        )  # fmt: skip
        written = onnx.load(path)
    written.ClearField("metadata_props")
    return written


def quantize_openvino(model: Any, wanted: Int8) -> Any:
    """Return a model of OpenVINO, read from such a model of ONNX, with its layers in 8 bits."""
    os.environ["NNCF_CI"] = "1"  # else it tells its makers of each use
    import nncf

    names = {node.get_friendly_name() for node in model.get_ops()}
    # a layer with a bias may be the product under another name, and the sum under its own
    products = {f"{name}/WithoutBiases" if f"{name}/WithoutBiases" in names else name for name in wanted.layers}
    parts = list(_parts(wanted.images))
    for name in ("nncf", "torch.utils.cpp_extension"):  # the latter tells that there is no CUDA
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its bars
        return nncf.quantize(
            model, nncf.Dataset(parts), subset_size=len(parts), model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted(names - products), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )  # fmt: skip


def _parts(images: Tensor) -> Iterator[np.ndarray]:
    for part in images.split(BATCH):
        yield np.ascontiguousarray(part.numpy())
