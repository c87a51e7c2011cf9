"""8-bit weights and inputs of linear layers and convolutions: which layers, how sensitive each is, and the conversion.

Weights have a scale for each output channel, and inputs one for all, from their ranges on
calibration images: the answer to an image never depends on the others of its batch. Weights take 7
of the 8 bits, as processors that lack VNNI overflow otherwise. All else stays in float: norms,
softmax, GELU, the products within attention, and the performer of T2T-ViT, whose exponentials would
magnify rounding errors.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vitrail.models.family import VisionModel

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""The operators of ONNX that linear layers and convolutions become."""
SHAPES_INFERRED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Key and value of metadata that tell ONNX Runtime that shapes are inferred already."""
BATCH_SIZE = 8
"""Calibration images that are run at once."""
INPUT_LEVELS = 255
"""Steps between the least and the largest value of an input in 8 bits."""
WEIGHT_LEVELS = 63
"""Steps from 0 to the largest weight in 7 bits, one of which is the sign."""


@dataclass(frozen=True, eq=False)
class Int8:
    """Which layers are to be in 8 bits, and the images on which the ranges of their inputs are found."""

    layers: Sequence[str]
    images: Float[Tensor, "n c h w"]
    """Normalised images."""


def find_quantizable(model: VisionModel) -> tuple[str, ...]:
    """Return the names of the linear layers and convolutions that may be in 8 bits."""
    layers = []
    float_only = []
    for name, module in model.named_modules():
        if isinstance(module, model.in_float):
            float_only.append(f"{name}.")
        elif isinstance(module, nn.Linear | nn.Conv2d):
            layers.append(name)
    return tuple(name for name in layers if not name.startswith(tuple(float_only)))


@torch.inference_mode()
def measure_sensitivities(
    model: VisionModel,
    layers: Sequence[str],
    images: Float[Tensor, "n c h w"],
    advance: Callable[[], None],
) -> dict[str, float]:
    """Return how far logits move where one layer alone is rounded to 8 bits, as a share of how far they spread.

    Args:
        model: A model in float32, on the CPU.
        layers: Names from `find_quantizable`.
        images: Normalised images.
        advance: Called after each layer.
    """
    exact, ranges = _observe_inputs(model, layers, images)
    spread = _root_mean_square(exact - exact.mean(1, keepdim=True))
    sensitivities = {}
    for name in layers:
        logits = _run_with_one_rounded(model, name, ranges[name], images)
        sensitivities[name] = _root_mean_square(logits - exact) / max(spread, 1e-12)
        advance()
    return sensitivities


def _observe_inputs(
    model: VisionModel, layers: Sequence[str], images: Tensor
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Return the logits of a model, and the least and the largest input of each layer, 0 included."""
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(edge) for edge in inputs[0].aminmax())
        # 8 bits must have a value for 0 exactly, which padding is made of
        ranges[name] = min(low, 0.0), max(high, 0.0)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(observe, name))
        for name in layers
    ]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, ranges


def _run_with_one_rounded(
    model: VisionModel, name: str, input_range: tuple[float, float], images: Tensor
) -> Tensor:
    """Return the logits of a model with the weight and the inputs of one layer rounded to 8 bits."""
    low, high = input_range
    scale = max(high - low, 1e-12) / INPUT_LEVELS
    zero = round(-low / scale)

    def round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        given = inputs[0].contiguous()
        return torch.fake_quantize_per_tensor_affine(given, scale, zero, 0, INPUT_LEVELS)

    layer = model.get_submodule(name)
    weight = layer.get_parameter("weight")
    scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / WEIGHT_LEVELS
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(
        weight, scales, zeros, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS
    )
    hook = layer.register_forward_pre_hook(round_input)
    logits = functional_call(model, {f"{name}.weight": rounded}, images)
    hook.remove()
    return logits


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def quantize_onnx(model: Any, wanted: Int8) -> Any:
    """Return an ONNX model with some layers in 8 bits; the nodes of their products must bear the layers' names."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = _split_batches(wanted.images)

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    entry = model.metadata_props.add()
    entry.key, entry.value = SHAPES_INFERRED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            model,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=list(wanted.layers),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            },
        )
        quantized = onnx.load(path)
    quantized.ClearField("metadata_props")
    return quantized


def quantize_openvino(model: Any, wanted: Int8) -> Any:
    """Return an OpenVINO model, read from an ONNX model as for `quantize_onnx`, with some layers in 8 bits."""
    os.environ["NNCF_CI"] = "1"  # else it tells its makers of each use
    import nncf

    names = {node.get_friendly_name() for node in model.get_ops()}
    products = set()
    for layer in wanted.layers:
        # of a layer with a bias, the sum may have the name, and the product this one
        product = f"{layer}/WithoutBiases"
        products.add(product if product in names else layer)
    batches = list(_split_batches(wanted.images))
    for name in ("nncf", "torch.utils.cpp_extension"):  # the latter tells that there is no CUDA
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted(names - products), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )


def _split_batches(images: Tensor) -> Iterator[np.ndarray]:
    for batch in images.split(BATCH_SIZE):
        yield np.ascontiguousarray(batch.numpy())
