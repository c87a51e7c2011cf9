"""Inference engines: PyTorch, ONNX Runtime, OpenVINO, AOTInductor, TorchScript and MindSpore, one starter each.

A starter loads a file and returns a function that turns normalised images into logits.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.choices import Engine, Precision
from vitrail.devices import autocast, keep_freed_memory
from vitrail.errors import CheckpointError, ConfigError, MissingExtra, tell_count, write_option
from vitrail.inference.exported import Making, check_beside
from vitrail.weights.opened import Opened

ENGINES: Mapping[str, tuple[Engine, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pt2": ("aotinductor",),
    ".torchscript": ("torchscript",),
    ".mindir": ("mindspore",),
}
"""Engines that can run a file, by its ending, the usual one first; any other file is taken for
weights, for torch."""
TITLES: Mapping[Engine, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "aotinductor": "AOTInductor",
    "torchscript": "TorchScript",
    "mindspore": "MindSpore",
}
"""Names of the engines in messages."""
EXTRAS: Mapping[Engine, str] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra of this package that installs an engine."""
MINDSPORE_PYTHON = "VITRAIL_MINDSPORE_PYTHON"
"""Environment variable with the Python of an environment that has MindSpore, which needs another
NumPy than vitrail."""
MINDSPORE_SCRIPT = """
import io, os, sys
import numpy as np

answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what else is printed is none of them
import mindspore as ms

ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
network = ms.nn.GraphCell(ms.load(sys.argv[1]))
answers.write(f"MindSpore {ms.__version__}\\n".encode())
answers.flush()
while size := sys.stdin.buffer.readline():
    images = np.load(io.BytesIO(sys.stdin.buffer.read(int(size))))
    stored = io.BytesIO()
    np.save(stored, network(ms.Tensor(images)).asnumpy())
    answers.write(b"%d\\n" % stored.tell() + stored.getvalue())
    answers.flush()
"""
"""Program that answers each array of images with one of logits; a line with its size comes before
each array."""
HINTS: Mapping[Precision, tuple[str, str]] = {
    "float32": ("f32", "FP32"),
    "bfloat16": ("bf16", "BF16"),
    "float16": ("f16", "FP16"),
}
"""OpenVINO's two words for each precision: where it is asked for, and where a device says what it
can do."""
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""PyTorch's names for the instructions of a CPU; each includes all of those before it."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The order to start an engine."""

    path: str
    weights: Opened | None
    """The weights of a weight file."""
    making: Making | None
    """How an exported file was made."""
    device: torch.device
    """The device that is wanted."""
    precision: Precision
    threads: int


class Started(NamedTuple):
    """An engine that has loaded a file."""

    run: Run
    device: torch.device
    """The device that computes."""
    version: str
    model: nn.Module | None = None
    """The module of a weight file, for what looks into it; an exported file has none."""


def _start_torch(start: Start) -> Started:
    assert start.weights is not None
    model = start.weights.build(start.device)
    run = start_module(model, start.device, start.precision, start.threads)
    return Started(run, start.device, torch.__version__, model)


def start_module(model: nn.Module, device: torch.device, precision: Precision, threads: int) -> Run:
    """Run a module as training validates one: in half precision only where autocast takes it.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if precision == "float16" and device.type == "cpu":
        where = write_option("precision", "float16")
        raise ConfigError(
            f"{where}: PyTorch computes so on GPUs; use bfloat16 or float32 on this CPU"
        )
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, precision):
            return model(images.to(device)).float().to(images.device)

    return run


def _start_onnxruntime(start: Start) -> Started:
    import onnxruntime

    device = start.device
    provider: Any = "CPUExecutionProvider"
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # TF32 would round factors to 10 bits
        provider = ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0})
    else:
        device = torch.device("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = start.threads
    options.log_severity_level = 3
    # idle threads that spin would slow whatever comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(start.path, options, providers=[provider])
    name = session.get_inputs()[0].name
    output = session.get_outputs()[0].name

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([output], {name: np.ascontiguousarray(images.cpu().numpy())})
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return Started(run, device, onnxruntime.__version__)


def openvino_capabilities() -> Sequence[str]:
    """Return the precisions that OpenVINO can compute in on this CPU, in its words."""
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _start_openvino(start: Start) -> Started:
    """Run IR or ONNX with the precision that was asked for: left to itself, OpenVINO takes bfloat16 where it can."""
    import openvino

    path = Path(start.path)
    if path.suffix == ".xml" and start.making is not None:
        check_beside(path, start.making)
    hint, capability = HINTS[start.precision]
    known = openvino_capabilities()
    if capability not in known:
        able = [name for name, (_, word) in HINTS.items() if word in known]
        where = write_option("precision", start.precision)
        raise ConfigError(
            f"{where}: OpenVINO cannot compute so on this CPU; it can in {' and '.join(able)}"
        )
    mode = "ACCURACY" if start.precision == "float32" else "PERFORMANCE"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "EXECUTION_MODE_HINT": mode,
        "INFERENCE_NUM_THREADS": start.threads,
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        logits = compiled(np.ascontiguousarray(images.cpu().numpy()))[0]
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return Started(run, torch.device("cpu"), openvino.__version__.split("-")[0])


def _start_aotinductor(start: Start) -> Started:
    assert start.making is not None
    details, device = start.making.details, start.device
    if device.type != details["device"]:
        device = torch.device(details["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{start.path}: was compiled for CUDA, which is not here; export it again on this "
            "machine"
        )
    if device.type == "cpu":
        if details["cpu"] not in _cpus_within(cpu()):
            raise ConfigError(
                f"{start.path}: was compiled for {details['cpu']}, and this machine is {cpu()}; "
                "export it again here"
            )
        torch.set_num_threads(start.threads)
    # PyTorch would warn that there is no CUDA
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch._inductor import aoti_load_package

    compiled = aoti_load_package(start.path, device_index=device.index or -1)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = compiled(images.to(device).contiguous())
        assert isinstance(logits, Tensor)
        return logits.to(images.device)

    return Started(run, device, torch.__version__)


def _start_torchscript(start: Start) -> Started:
    device = start.device
    if device.type == "cpu":
        torch.set_num_threads(start.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its successors
        program = torch.jit.load(start.path, map_location=device)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(images.to(device)).to(images.device)

    return Started(run, device, torch.__version__)


def _start_mindspore(start: Start) -> Started:
    """Run MindIR in a process of the Python that has MindSpore; the process lives as long as the returned function."""
    path, python = start.path, _mindspore_python()
    if python is None:
        raise MissingExtra(
            f"{path}: needs MindSpore; install it in an environment of its own (pip install "
            f"mindspore==2.10.0 'numpy<2') and give the path of its python in {MINDSPORE_PYTHON}"
        )
    environment = {**os.environ, "OMP_NUM_THREADS": str(start.threads), "GLOG_v": "3"}
    process = subprocess.Popen(
        [python, "-c", MINDSPORE_SCRIPT, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    greeting = stdout.readline().decode().split()
    if greeting[:1] != ["MindSpore"]:
        _end(process)
        raise CheckpointError(f"{path}: {python} cannot load it in MindSpore, and says why above")

    def run(images: Tensor) -> Tensor:
        stored = io.BytesIO()
        np.save(stored, images.cpu().numpy())
        try:
            stdin.write(b"%d\n" % stored.tell() + stored.getvalue())
            stdin.flush()
            logits = np.load(io.BytesIO(stdout.read(int(stdout.readline()))))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: MindSpore cannot run it, and says why above") from error
        return torch.from_numpy(logits).to(images.device)

    weakref.finalize(run, _end, process)
    return Started(run, torch.device("cpu"), greeting[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a process end for want of input."""
    process.communicate()


def about(engine: str, precision: str, device: torch.device, threads: int) -> str:
    """Return engine, precision and device, or threads on the CPU, in a few words."""
    where = tell_count(threads, "thread") if device.type == "cpu" else str(device)
    return f"{engine}, {precision}, {where}"


def has_mindspore() -> bool:
    """Say whether there is a Python that has MindSpore, here or where the environment says."""
    return _mindspore_python() is not None


def _mindspore_python() -> str | None:
    return os.environ.get(MINDSPORE_PYTHON) or (sys.executable if find_spec("mindspore") else None)


def cpu() -> str:
    """Return the kind of this machine and what PyTorch calls the instructions of its CPU."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _cpus_within(here: str) -> list[str]:
    """Return the CPUs whose machine code this one runs, as `cpu` describes them: itself, and those that can less."""
    machine, capability = here.split(" ", 1)
    if capability not in CAPABILITIES:
        return [here]
    up_to = CAPABILITIES.index(capability) + 1
    return [f"{machine} {less}" for less in CAPABILITIES[:up_to]]


STARTS: Mapping[Engine, Callable[[Start], Started]] = {
    "torch": _start_torch,
    "onnxruntime": _start_onnxruntime,
    "openvino": _start_openvino,
    "aotinductor": _start_aotinductor,
    "torchscript": _start_torchscript,
    "mindspore": _start_mindspore,
}
"""The starter of each engine."""
