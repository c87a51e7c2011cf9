"""Export formats: how a model is written as ONNX, OpenVINO, AOTInductor (pt2), TorchScript or MindIR."""

from __future__ import annotations

import ast
import copy
import hashlib
import io
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrail.choices import ExportFormat, Precision
from vitrail.deploy.int8 import PRODUCTS, Int8, find_quantizable, quantize_onnx, quantize_openvino
from vitrail.deploy.mindir import CHECK_SCRIPT, to_mindir
from vitrail.deploy.onnx_preprocess import add_preprocess
from vitrail.devices import DTYPES
from vitrail.errors import ExportError, write_option
from vitrail.files import Buffer
from vitrail.inference.engines import cpu
from vitrail.inference.exported import EXTRA, Making, with_making
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import KEY, Record, hash_file, to_metadata
from vitrail.weights.digest import BLANK, DIGESTS, seal, seal_archive

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node in which PyTorch's exporter says which modules it is of."""
OPSET = 20
"""Version of ONNX's operators: the first that has GELU."""
Files = Mapping[str, Sequence[Buffer]]
"""Contents of the files of one format by their endings; the file that the others are found from
comes last."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model to be exported, and how."""

    model: VisionModel
    """The model in float32, on the CPU."""
    record: Record
    making: Making
    device: torch.device
    """Device that a .pt2 is compiled for."""
    mindir_version: Literal[1, 3]
    topk: int
    """Most probable classes that a file which preprocesses images itself yields."""
    int8: Int8 | None = None
    """Layers that are to be in 8 bits; None leaves all in float."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """Programs and graphs that more than one format takes, made so far."""

    def metadata(self, **details: str) -> dict[str, str]:
        """Return what the file is to say of itself."""
        versions = {"vitrail": version("vitrail"), "torch": torch.__version__}
        making = replace(self.making, details={**versions, **self.making.details, **details})
        return to_metadata(with_making(self.record, making))

    def sealed_metadata(self, **details: str) -> dict[str, str]:
        """Return what the file is to say of itself, with places for its digest, which `seal` fills in."""
        return {**self.metadata(**details), **dict.fromkeys(DIGESTS, BLANK)}

    def images(self) -> Tensor:
        """Return noise to trace the model with, the same each time."""
        batch_size = self.making.batch_size or 2  # one image alone would be taken for a constant
        config = self.model.config
        shape = (batch_size, config.in_channels, *config.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def network(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return a copy of the model that computes in the precision that is wanted."""
        precision = self.making.precision
        if precision in ("float32", "int8"):
            return copy.deepcopy(self.model).to(device)
        dtype = DTYPES[precision]
        return Cast(copy.deepcopy(self.model).to(device, dtype), dtype)

    def program(self, device: torch.device | str = "cpu") -> ExportedProgram:
        """Return the graph of the model, for any number of images unless the plan has one."""
        batch_size = self.making.batch_size
        key = batch_size, torch.device(device)
        if key not in self.cache:
            shapes = ({0: Dim.DYNAMIC},) if batch_size is None else None
            with torch.no_grad():
                images = self.images().to(device)
                self.cache[key] = torch.export.export(
                    self.network(device), (images,), dynamic_shapes=shapes
                )
        return self.cache[key]


class Cast(nn.Module):
    """A model of half precision that takes images and yields logits in float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


class Format(NamedTuple):
    """One kind of file, and how it is written."""

    suffix: str
    write: Callable[[Plan], Files]
    precisions: Sequence[Precision] = ("float32",)
    packages: Sequence[str] = ()
    """Packages that writing takes beside PyTorch."""
    beside: Sequence[str] = ()
    """Endings of the other files that belong to it."""


def _write_onnx(plan: Plan) -> Files:
    model = _export_onnx(plan)
    if plan.int8 is not None:
        model = quantize_onnx(model, plan.int8)
    if plan.making.input == "image":
        model = add_preprocess(
            model,
            plan.record.preprocess,
            plan.model.config.num_classes,
            plan.topk,
            is_multi_label=plan.record.is_multi_label,
        )
    for key, text in plan.sealed_metadata(opset=str(OPSET)).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    return {".onnx": [seal([model.SerializeToString()])]}


def _export_onnx(plan: Plan) -> Any:
    """Return the model as ONNX's protobuf, without anything that tells of this machine."""
    if "onnx" not in plan.cache:
        program = plan.program().run_decompositions(
            {torch.ops.aten.unfold.default: _unfold_by_slices}
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        _name_batch_dimension(model.graph)
        _name_layers(model.graph.node, set(find_quantizable(plan.model)))
        _remove_traces(model.graph)
        plan.cache["onnx"] = model
    return copy.deepcopy(plan.cache["onnx"])


def _unfold_by_slices(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Cut windows of one dimension by strided slices, which every runtime has, where ONNX would gather."""
    last = (x.shape[dim] - size) // step * step + 1
    windows = [torch.ops.aten.slice(x, dim, start, start + last, step) for start in range(size)]
    return torch.stack(windows, dim=-1)


def _name_batch_dimension(graph: Any) -> None:
    """Call the number of images `batch`, in place of the exporter's symbol such as s77; it has none where fixed."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        return
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"


def _name_layers(nodes: Iterable[Any], layers: AbstractSet[str]) -> None:
    """Give the products of linear layers and convolutions the layers' names, by which they are quantized."""
    for node in nodes:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(metadata.get(SCOPES, "[]"))
        # the last scope is the operation, the one before it the layer
        if node.op_type in PRODUCTS and len(scopes) > 1 and scopes[-2] in layers:
            node.name = scopes[-2]


def _remove_traces(graph: Any) -> None:
    """Remove the lines of code that the exporter notes, with their paths on this machine."""
    for part in (
        graph,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.node,
        *graph.initializer,
    ):
        part.ClearField("metadata_props")


def _write_openvino(plan: Plan) -> Files:
    import openvino

    # by OpenVINO's reader of ONNX: that for PyTorch sends word of each conversion to its makers
    model = openvino.Core().read_model(_export_onnx(plan).SerializeToString())
    if plan.int8 is not None:
        model = quantize_openvino(model, plan.int8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        # saved again, as the .xml says which .bin it belongs to
        texts = plan.sealed_metadata(
            opset=str(OPSET), openvino=openvino.__version__, bin=hash_file(path.with_suffix(".bin"))
        )
        for key, text in texts.items():
            model.set_rt_info(text, [key])
        openvino.save_model(model, path, compress_to_fp16=False)
        weights = path.with_suffix(".bin").read_bytes()
        return {".bin": [weights], ".xml": [seal([path.read_bytes()])]}


def _write_pt2(plan: Plan) -> Files:
    """Compile the model ahead of time, by the C++ compiler of this machine and for its processor."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    # it tells that there is no CUDA
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    texts = plan.metadata(device=plan.device.type, cpu=cpu())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        try:
            with torch.no_grad():
                aoti_compile_and_package(plan.program(plan.device), package_path=str(path))
        except (InvalidCxxCompiler, InductorError) as error:
            reason = str(error).strip().splitlines()[0]
            where = write_option("format", "pt2")
            raise ExportError(
                f"{where}: cannot be compiled ({reason}); it takes a C++ compiler such as g++"
            ) from error
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{EXTRA}", texts[KEY])
        return {".pt2": [seal_archive(path.read_bytes())]}


def _write_torchscript(plan: Plan) -> Files:
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # TorchScript warns that it has successors, and that sizes were compared with those of the
        # model
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(plan.network(), plan.images(), check_trace=False)
        torch.jit.save(traced, buffer, _extra_files=plan.metadata())
    return {".torchscript": [seal_archive(buffer.getvalue())]}


def _write_mindir(plan: Plan) -> Files:
    images = plan.images()
    with torch.no_grad():
        logits = plan.model(images)
    network = seal(to_mindir(plan.program(), plan.mindir_version, plan.sealed_metadata()))
    answers = io.BytesIO()
    sha256 = hashlib.sha256(network).hexdigest()  # of the file that the answers are of
    np.savez(answers, images=images.numpy(), logits=logits.numpy(), sha256=sha256)
    return {
        ".check.npz": [answers.getvalue()],
        ".check.py": [CHECK_SCRIPT.encode()],
        ".mindir": [network],
    }


ANY: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
FORMATS: Mapping[ExportFormat, Format] = {
    # no CPU has kernels for ONNX in bfloat16
    "onnx": Format(
        ".onnx", _write_onnx, ("float32", "float16"), ("onnx", "onnxscript", "onnxruntime")
    ),
    "openvino": Format(".xml", _write_openvino, ANY, ("onnx", "onnxscript", "openvino"), (".bin",)),
    "pt2": Format(".pt2", _write_pt2, ANY),
    "torchscript": Format(".torchscript", _write_torchscript, ANY),
    "mindir": Format(".mindir", _write_mindir, beside=(".check.npz", ".check.py")),
}
