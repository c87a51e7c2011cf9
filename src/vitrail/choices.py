"""Choices shared by settings, functions and commands, such as precision, device and optimizer. No torch."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
"""Precision of matrix products."""
Device = Literal["auto", "cpu"]
"""Device that computes: the accelerator where there is one, or the CPU."""
Resize = Literal["crop", "squash", "letterbox"]
"""How an image comes to the size of its view: its middle is cut out, its sides are resized by
different factors, or all of it is framed."""
OptimizerName = Literal["adamw", "sgd", "lamb", "lion", "adan", "muon"]
"""Optimizer of a training."""
Engine = Literal["torch", "onnxruntime", "openvino", "aotinductor", "torchscript", "mindspore"]
"""Runtime of an exported file."""
ExportFormat = Literal["onnx", "openvino", "pt2", "torchscript", "mindir"]
"""Kind of file that a model is exported to."""
QuantizedFormat = Literal["onnx", "openvino"]
"""Kind of file that a model in 8 bits is written to."""
ExplanationMethod = Literal[
    "rollout", "gradient-attention", "grad-cam", "integrated-gradients", "occlusion"
]
"""How an answer is explained; `explanation/methods.py` says which method is for which family."""
