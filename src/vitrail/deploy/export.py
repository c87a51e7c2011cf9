"""A trained model as files of other runtimes, each compared with PyTorch before it gets its name."""

from __future__ import annotations

import ast
import copy
import io
import logging
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrail.deploy.compare import Sample, Verdict, compare, compare_whole
from vitrail.deploy.int8 import PRODUCTS, Int8, quantizable, quantize_onnx, quantize_openvino
from vitrail.deploy.mindir import CHECK_SCRIPT, to_mindir
from vitrail.deploy.onnx_preprocess import put_preprocess
from vitrail.devices import DTYPES, Precision
from vitrail.errors import ConfigError, ExportError, MissingExtra
from vitrail.files import Buffer, files_of, refusal_told, refuse_output, remove, remove_leftovers, temporary_name
from vitrail.inference.engines import cpu, has_mindspore, read_artifact, require_classes
from vitrail.inference.exported import EXTRA, Making, with_making
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import KEY, Record, hash_file, to_metadata
from vitrail.weights.digest import BLANK, DIGESTS, seal, seal_archive
from vitrail.weights.opened import Opened

ADVICE = "free space or choose another --output"
REJECTED = ".rejected"
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter says which modules a node is of."""
OPSET = 20
"""Of ONNX: the first that has GELU."""
FormatName = Literal["onnx", "openvino", "pt2", "torchscript", "mindir"]
Files = Mapping[str, Sequence[Buffer]]
"""What is to be written, by the endings of the files; the one that others are found from comes last."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be exported, and how."""

    model: VisionModel
    """In float32, on the CPU."""
    record: Record
    making: Making
    device: torch.device
    """What a .pt2 is compiled for."""
    mindir_version: Literal[1, 3]
    topk: int
    """Of a file that preprocesses images itself."""
    int8: Int8 | None = None
    made: dict[Any, Any]
    """Programs and graphs that more than one format takes, made so far."""

    def metadata(self, **details: str) -> dict[str, str]:
        """Return what the file is to say of itself."""
        details = {"vitrail": version("vitrail"), "torch": torch.__version__, **self.making.details, **details}
        return to_metadata(with_making(self.record, replace(self.making, details=details)))

    def texts(self, **details: str) -> dict[str, str]:
        """Return the same with places for the digest of the file, which `seal` fills in."""
        return {**self.metadata(**details), **dict.fromkeys(DIGESTS, BLANK)}

    def images(self) -> Tensor:
        """Return noise to trace the model with, the same each time."""
        # one image alone would be taken for a constant
        shape = (self.making.batch_size or 2, self.model.config.in_channels, *self.model.config.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def network(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return a copy of the model that computes in the precision that is wanted."""
        precision = self.making.precision
        if precision in ("float32", "int8"):
            return copy.deepcopy(self.model).to(device)
        return Cast(copy.deepcopy(self.model).to(device, DTYPES[precision]), DTYPES[precision])

    def program(self, device: torch.device | str = "cpu") -> ExportedProgram:
        """Return the graph of the model, for any number of images unless the plan has one."""
        size = self.making.batch_size
        key = size, torch.device(device)
        if key not in self.made:
            shapes = ({0: Dim.DYNAMIC},) if size is None else None
            with torch.no_grad():
                images = self.images().to(device)
                self.made[key] = torch.export.export(self.network(device), (images,), dynamic_shapes=shapes)
        return self.made[key]


class Cast(nn.Module):
    """A model of half precision, between images and logits of float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of one format."""

    format: FormatName
    path: Path
    """Ends in .rejected where the verdict is bad."""
    bytes: int
    """Of all its files."""
    seconds: float
    """To write it, without the verdict."""
    verdict: Verdict | None
    """None for MindIR where MindSpore is not at hand."""
    script: Path | None = None
    """What compares it where MindSpore is."""

    @property
    def is_good(self) -> bool:
        """Whether it has its name."""
        return self.verdict is None or self.verdict.is_good


class Format(NamedTuple):
    """How one kind of file is written."""

    suffix: str
    write: Callable[[Plan], Files]
    precisions: Sequence[Precision] = ("float32",)
    packages: Sequence[str] = ()
    """What it takes beside PyTorch."""
    beside: Sequence[str] = ()
    """Endings of the other files that belong to it."""


def find_outputs(formats: Sequence[FormatName], checkpoint: Path, output: Path | None) -> dict[FormatName, Path]:
    """Return the file of each format: beside the weight file, or what `output` names, for several formats a folder.

    Raises:
        ConfigError: An output that cannot be.
    """
    found: dict[FormatName, Path]
    if output is None:
        found = {name: checkpoint.with_suffix(FORMATS[name].suffix) for name in formats}
    elif len(formats) == 1:
        found = {formats[0]: output}
    elif output.is_dir():
        found = {name: (output / checkpoint.name).with_suffix(FORMATS[name].suffix) for name in formats}
    else:
        raise ConfigError(f"--output {output}: must be a folder that is there, as {len(formats)} formats are wanted")
    for name, path in found.items():
        suffix = FORMATS[name].suffix
        if path.suffix != suffix:
            raise ConfigError(f"--output {path}: must end in {suffix}, by which it is known where it is loaded")
        for one in (suffix, *FORMATS[name].beside):
            refuse_output("--output", path.with_suffix(one), files_of(checkpoint))
    return found


def check_wishes(
    formats: Sequence[FormatName], precision: Precision, batch_size: int | None, with_preprocess: bool
) -> None:
    """Refuse what cannot be exported, before anything is.

    Raises:
        ConfigError: A format in a precision that it does not have, a batch of nothing, or preprocessing elsewhere.
        MissingExtra: A package that a format needs is not installed.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; it must be at least 1")
    if with_preprocess and set(formats) != {"onnx"}:
        raise ConfigError("--with-preprocess is for --format onnx; other runtimes scale images otherwise, or cannot")
    if with_preprocess and batch_size is not None:
        raise ConfigError("--batch-size: with --with-preprocess a file takes one image, of any size; leave it out")
    for name in formats:
        if precision not in FORMATS[name].precisions:
            able = " and ".join(other for other in FORMATS if precision in FORMATS[other].precisions)
            raise ConfigError(f"--precision {precision}: {name} cannot be had so; {able} can")
        for package in FORMATS[name].packages:
            if find_spec(package) is None:
                raise MissingExtra(f"--format {name}: needs {package}; run: pip install 'vitrail[{name}]'")


def export(
    opened: Opened,
    outputs: Mapping[FormatName, Path],
    sample: Sample,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    with_preprocess: bool = False,
    topk: int = 5,
    device: torch.device | str = "cpu",
    mindir_version: Literal[1, 3] = 1,
) -> Iterator[Exported]:
    """Write a trained model in other formats, for float32 images of one size; yield each when it is compared.

    Args:
        opened: From `open_model`; weights of half precision are widened.
        outputs: From `find_outputs`.
        sample: Images that each file is compared with PyTorch on.
        precision: Of what the file computes; images and logits are float32 in any case.
        batch_size: Images that a file takes at once; None lets it take any number, but MindIR, which takes one.
        with_preprocess: Let the file, of ONNX, take one whole image of uint8 instead, and yield probabilities.
        topk: Of the likeliest classes that it then yields too.
        device: What a .pt2 is compiled for.
        mindir_version: As in `to_mindir`.

    Raises:
        CheckpointError: The weights do not fit, or the disk is full; no file is left half written.
        ConfigError: The preprocessing is to be put into the file, and is of 16 bits or without classes behind it.
        DataError: An image of the sample cannot be read.
        ExportError: An operation of the model has no counterpart in the format, or a compiler is missing.
    """
    if with_preprocess:
        require_classes(opened.record, opened.account.path)
    if with_preprocess and opened.record.preprocess.bits != 8:
        raise ConfigError("--with-preprocess takes images of 8 bits, and this model reads 16; leave it out")
    model = opened.build().float()
    source = Path(opened.account.path)
    made: dict[Any, Any] = {}
    compared = [name for name in outputs if name != "mindir" or has_mindspore()]
    if compared:
        _ = sample.images  # read first, as writing takes longer
    given: Literal["image", "normalised"] = "image" if with_preprocess else "normalised"
    for name, path in outputs.items():
        started = time.perf_counter()
        making = Making(
            format=name, source=source.name, sha256=hash_file(source), precision=precision,
            batch_size=batch_size or (1 if name == "mindir" else None), input=given, details={},
        )  # fmt: skip
        plan = Plan(
            model=model, record=opened.record, making=making, device=torch.device(device),
            mindir_version=mindir_version, topk=topk, made=made,
        )  # fmt: skip
        files = FORMATS[name].write(plan)
        seconds = time.perf_counter() - started
        with staged_files(path, files) as staged:
            verdict = None
            if name in compared:
                network = read_artifact(staged, whole=with_preprocess).start(plan.device)
                verdict = (compare_whole if with_preprocess else compare)(network, model, sample)
            is_good = verdict is None or verdict.is_good
            written = {suffix: path.with_suffix(suffix + ("" if is_good else REJECTED)) for suffix in files}
            for suffix, final in written.items():
                staged.with_suffix(suffix).replace(final)
        yield Exported(
            format=name,
            path=written[path.suffix],
            bytes=sum(final.stat().st_size for final in written.values()),
            seconds=seconds,
            verdict=verdict,
            script=written.get(".check.py"),
        )


@contextmanager
def staged_files(path: Path, files: Files) -> Iterator[Path]:
    """Write files to a folder of their own beside where they are wanted, for a while.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    with refusal_told(path, path.parent / "none", ADVICE):
        remove_leftovers(path)
        place = temporary_name(path)
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed and had the same number
        place.mkdir()
    try:
        staged = place / path.name
        with refusal_told(path, staged, ADVICE):
            for suffix, parts in files.items():
                with staged.with_suffix(suffix).open("wb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
        yield staged
    finally:
        remove(place)


# What follows writes one format each.


def _onnx_model(plan: Plan) -> Any:
    """Return the model as ONNX's protobuf, without what tells of this machine."""
    if "onnx" in plan.made:
        return copy.deepcopy(plan.made["onnx"])
    program = plan.program().run_decompositions({torch.ops.aten.unfold.default: _unfold})
    written = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert written is not None
    model = written.model_proto
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = "batch"
    _name_layers(graph.node, set(quantizable(plan.model)))
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer):
        part.ClearField("metadata_props")  # lines of code, by the paths of this machine
    plan.made["onnx"] = model
    return copy.deepcopy(model)


def _name_layers(nodes: Iterable[Any], layers: AbstractSet[str]) -> None:
    """Give the products of linear layers and convolutions the names of these, which 8 bits are ordered by."""
    for node in nodes:
        texts = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(texts.get(SCOPES, "[]"))
        if node.op_type in PRODUCTS and scopes[-2:-1] and scopes[-2] in layers:
            node.name = scopes[-2]


def _unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Cut windows of one dimension by strided slices, which every runtime has, where ONNX would gather."""
    last = (x.shape[dim] - size) // step * step + 1
    return torch.stack([torch.ops.aten.slice(x, dim, start, start + last, step) for start in range(size)], dim=-1)


def _write_onnx(plan: Plan) -> Files:
    model = _onnx_model(plan)
    if plan.int8 is not None:
        model = quantize_onnx(model, plan.int8)
    if plan.making.input == "image":
        record = plan.record
        classes, several = plan.model.config.num_classes, record.thresholds is not None
        model = put_preprocess(model, record.preprocess, classes, plan.topk, several=several)
    for key, text in plan.texts(opset=str(OPSET)).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    return {".onnx": [seal([model.SerializeToString()])]}


def _write_openvino(plan: Plan) -> Files:
    import openvino

    # read by its own reader of ONNX: that for PyTorch sends word of each conversion to its makers
    model = openvino.Core().read_model(_onnx_model(plan).SerializeToString())
    if plan.int8 is not None:
        model = quantize_openvino(model, plan.int8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        # the .xml says which .bin it belongs to
        details = {"opset": str(OPSET), "openvino": openvino.__version__, "bin": hash_file(path.with_suffix(".bin"))}
        for key, text in plan.texts(**details).items():
            model.set_rt_info(text, [key])
        openvino.save_model(model, path, compress_to_fp16=False)
        weights = path.with_suffix(".bin").read_bytes()
        return {".bin": [weights], ".xml": [seal([path.read_bytes()])]}


def _write_pt2(plan: Plan) -> Files:
    """Compile the model ahead of time, by the C++ compiler of this machine and for its processor."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA
    texts = plan.metadata(device=plan.device.type, cpu=cpu())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        try:
            aoti_compile_and_package(plan.program(plan.device), package_path=str(path))
        except (InvalidCxxCompiler, InductorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(
                f"--format pt2: cannot be compiled ({reason}); it takes a C++ compiler such as g++"
            ) from error
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{EXTRA}", texts[KEY])
        return {".pt2": [seal_archive(path.read_bytes())]}


def _write_torchscript(plan: Plan) -> Files:
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has successors, and that sizes were compared with those of the model
        traced = torch.jit.trace(plan.network(), plan.images(), check_trace=False)
        torch.jit.save(traced, buffer, _extra_files=plan.metadata())
    return {".torchscript": [seal_archive(buffer.getvalue())]}


def _write_mindir(plan: Plan) -> Files:
    images = plan.images()
    with torch.no_grad():
        logits = plan.model(images)
    stored = io.BytesIO()
    np.savez(stored, images=images.numpy(), logits=logits.numpy())
    pieces = to_mindir(plan.program(), plan.mindir_version, plan.texts())
    return {".check.npz": [stored.getvalue()], ".check.py": [CHECK_SCRIPT.encode()], ".mindir": [seal(pieces)]}


ANY: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
FORMATS: Mapping[FormatName, Format] = {
    # no CPU has kernels for ONNX in bfloat16
    "onnx": Format(".onnx", _write_onnx, ("float32", "float16"), ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(".xml", _write_openvino, ANY, ("onnx", "onnxscript", "openvino"), (".bin",)),
    "pt2": Format(".pt2", _write_pt2, ANY),
    "torchscript": Format(".torchscript", _write_torchscript, ANY),
    "mindir": Format(".mindir", _write_mindir, beside=(".check.npz", ".check.py")),
}
