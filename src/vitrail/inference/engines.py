"""Anything that turns normalised images into logits: weights in PyTorch, or an exported file in a runtime of its own.

Opening a .pt2 loads machine code from it, and a .torchscript is a program: open only files that you wrote yourself.
What the others hold is data.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.devices import Precision, autocast, keep_freed_memory
from vitrail.display import Display
from vitrail.errors import CheckpointError, ConfigError, MissingExtra, VitrailError
from vitrail.inference.exported import READERS, Making, check_beside, describe
from vitrail.weights.checkpoint import Record
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened
from vitrail.weights.request import LoadRequest, check_described

Engine = Literal["torch", "onnxruntime", "openvino", "aotinductor", "torchscript", "mindspore"]
ENGINES: Mapping[str, tuple[Engine, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pt2": ("aotinductor",),
    ".torchscript": ("torchscript",),
    ".mindir": ("mindspore",),
}
"""What can run a file, by its ending, the usual one first; any other file is taken for weights, which torch runs."""
PROGRAMS = (".pt2", ".torchscript")
"""Endings of files that their engines run code from; what the others hold is data."""
MINDSPORE_PYTHON = "VITRAIL_MINDSPORE_PYTHON"
"""Names the Python of an environment that has MindSpore, which needs another NumPy than vitrail."""
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
"""Answers each array of images with one of logits, as long as there are any; a line with its size comes before each."""
HINTS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}
"""What OpenVINO calls each precision where it is asked for, and where a device says what it can do."""
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""What PyTorch calls the instructions of a CPU; each has all of those before it."""
REASON = 300
"""Characters of what a runtime says of a file, which may quote all of it."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model that is ready to answer."""

    path: str
    record: Record
    """Model, class names, preprocessing and provenance."""
    engine: Engine
    precision: Precision
    device: torch.device
    """Where it computes."""
    about: str
    """Engine, its version, precision and device, in a few words."""
    batch_size: int | None
    """Images that the file takes at once; None takes any number. Calls may have any number all the same."""
    run: Run

    @property
    def num_classes(self) -> int:
        """Of the logits."""
        return self.record.options["num_classes"]

    def __call__(self, images: Tensor) -> Tensor:
        """Turn normalised float32 images (b, c, h, w) into float32 logits (b, k) on the images' own device.

        Raises:
            ValueError: The images are of another type or size; some runtimes would answer them with nonsense.
        """
        size = self.record.preprocess.size
        wanted = (self.record.options["in_channels"], *size)
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images are {images.dtype} of {tuple(images.shape)}; {self.path} takes float32 (b, {wanted})"
            )
        if len(images) == 0:
            return images.new_empty(0, self.num_classes)
        if self.batch_size is None:
            return self.run(images)
        logits = []
        for part in images.split(self.batch_size):
            filled = torch.cat([part, part.new_zeros(self.batch_size - len(part), *wanted)])
            logits.append(self.run(filled)[: len(part)])
        return torch.cat(logits)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A weight file or an exported file of which nothing has run yet."""

    path: str
    record: Record
    engine: Engine
    weights: Opened | None = None
    """Of a weight file."""
    making: Making | None = None
    """Of an exported file."""

    def start(self, device: torch.device, precision: Precision | None = None, threads: int | None = None) -> Network:
        """Load it into its engine.

        Args:
            device: Where it is wanted; an engine that cannot compute there takes the CPU.
            precision: Of what is computed; None is the file's own, which only torch and OpenVINO can change.
            threads: On the CPU; None is PyTorch's number.

        Raises:
            CheckpointError: The file is damaged.
            ConfigError: The engine cannot compute so.
            MissingExtra: The engine is not installed.
        """
        own = self.making.precision if self.making else "float32"
        rest: Precision = "float32" if own == "int8" else own
        if self.engine not in ("torch", "openvino") and precision not in (None, own):
            raise ConfigError(
                f"--precision {precision}: {self.path} computes in {own}, as it was exported; leave it out, or export "
                "the weight file anew"
            )
        wanted = Start(self, device, precision or rest, threads or torch.get_num_threads())
        if self.engine in EXTRAS and find_spec(self.engine) is None:
            raise MissingExtra(
                f"{self.path}: needs {self.engine}, which is not installed; run: pip install "
                f"'vitrail[{EXTRAS[self.engine]}]'"
            )
        with _refusal_told(self.path, self.engine, "load"):
            started = STARTS[self.engine](wanted)
        run = started.run
        if self.making is not None and self.making.input == "normalised":
            run = _checked(self, run)
        return Network(
            path=self.path,
            record=self.record,
            engine=self.engine,
            precision=wanted.precision,
            device=started.device,
            about=about(
                f"{self.engine} {started.version}",
                wanted.precision if own != "int8" else f"int8 and {wanted.precision}",
                started.device,
                wanted.threads,
            ),
            batch_size=self.making.batch_size if self.making else None,
            run=run,
        )


class Start(NamedTuple):
    """What an engine is told."""

    artifact: Artifact
    device: torch.device
    precision: Precision
    threads: int


class Started(NamedTuple):
    """What an engine answers."""

    run: Run
    device: torch.device
    version: str


def read_artifact(
    path: Path | str, engine: str | None = None, asked: LoadRequest | None = None, *, whole: bool = False
) -> Artifact:
    """Read what a weight file or an exported file says of itself.

    Args:
        path: The file; its ending says what it is.
        engine: What is to run it; None is the usual one.
        asked: How a weight file is to be read.
        whole: Take a file that preprocesses whole images itself, whose network has no logits but a `run`.

    Raises:
        CheckpointError: It is missing or damaged, or says nothing of its classes and preprocessing.
        ConfigError: Another engine is needed.
    """
    engines: tuple[Engine, ...] = ENGINES.get(Path(path).suffix, ("torch",))
    if engine is not None and engine not in get_args(Engine):
        raise ConfigError(f"--engine {engine}: unknown; there are {', '.join(get_args(Engine))}")
    if engine is not None and engine not in engines:
        raise ConfigError(f"--engine {engine}: cannot run {path}; what can is {' or '.join(engines)}")
    chosen: Engine = next(name for name in engines if engine in (None, name))
    if Path(path).suffix not in READERS:
        opened = open_model(path, asked)
        return Artifact(path=opened.account.path, record=opened.record, engine=chosen, weights=opened)
    if asked is not None and replace(asked, described=None) != LoadRequest():
        raise ConfigError(f"{path}: settings of `weights` are for weight files; give them when you export it")
    found = describe(Path(path))
    if asked is not None:
        check_described(found.record, asked, str(path), exported=True)
    if found.making.input == "image" and not whole:
        raise ConfigError(
            f"{path}: reads whole images itself (--with-preprocess), one at a time; give the file exported without"
        )
    return Artifact(path=str(path), record=found.record, engine=chosen, making=found.making)


def tell_program(path: Path | str, display: Display) -> None:
    """Say of a file that holds code, before any of it runs, that opening it runs that."""
    if Path(path).suffix in PROGRAMS:
        display.note(
            f"{path}: is a program, which runs with all your rights; open such files only from somebody you trust"
        )


def require_classes(record: Record, path: Path | str) -> None:
    """Refuse a model that tells no classes apart: without a head, or with one output that every image would be.

    Raises:
        ConfigError: With what to do.
    """
    count = record.options["num_classes"]
    if count == 0:
        raise ConfigError(
            f"{path}: has no head, so it gives features and no classes; give a file with its head, or take the "
            f"features in Python with vitrail.load_model({str(path)!r})"
        )
    if count == 1 and record.thresholds is None:
        raise ConfigError(
            f"{path}: has one output, whose softmax is 1 for every image; drop weights.options.num_classes, or export "
            "the weight file anew, for two classes by its sigmoid"
        )


def open_artifact(
    path: Path | str,
    engine: str | None = None,
    *,
    precision: Precision | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    asked: LoadRequest | None = None,
) -> Network:
    """Open a weight file or an exported file, ready to answer.

        network = open_artifact("model.onnx")
        logits = network(network.record.preprocess("seven.png").unsqueeze(0))

    Args:
        path: The file; its ending says what it is.
        engine: What is to run it; None is the usual one.
        precision: Of what is computed; None is the file's own, float32 for weight files.
        threads: On the CPU; None is PyTorch's number.
        device: Where it is wanted; an engine that cannot compute there takes the CPU.
        asked: How a weight file is to be read.

    Raises:
        CheckpointError: It is missing or damaged, or says nothing of its classes and preprocessing.
        ConfigError: The engine cannot run it, or not so.
        MissingExtra: The engine is not installed.
    """
    return read_artifact(path, engine, asked).start(torch.device(device), precision, threads)


# What follows starts one engine each.


def _torch(wanted: Start) -> Started:
    opened, device = wanted.artifact.weights, wanted.device
    assert opened is not None
    run = start_module(opened.build(device), device, wanted.precision, wanted.threads)
    return Started(run, device, torch.__version__)


def start_module(model: nn.Module, device: torch.device, precision: Precision, threads: int) -> Run:
    """Run a module as training validates one: in half precision only where autocast takes it.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("--precision float16: PyTorch computes so on GPUs; use bfloat16 or float32 on this CPU")
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, precision):
            return model(images.to(device)).float().to(images.device)

    return run


def _onnxruntime(wanted: Start) -> Started:
    import onnxruntime

    path, device = wanted.artifact.path, wanted.device
    provider: Any = "CPUExecutionProvider"
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # which otherwise rounds what it multiplies to 10 bits
        provider = ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0})
    else:
        device = torch.device("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = wanted.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow what comes next
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([output], {name: np.ascontiguousarray(images.cpu().numpy())})
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return Started(run, device, onnxruntime.__version__)


def openvino_capabilities() -> Sequence[str]:
    """Return what OpenVINO can compute in on this CPU, in its words."""
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino(wanted: Start) -> Started:
    """Run IR or ONNX with the precision that was asked for: left to itself, OpenVINO takes bfloat16 where it can."""
    import openvino

    path, core, making = Path(wanted.artifact.path), openvino.Core(), wanted.artifact.making
    if path.suffix == ".xml" and making is not None:
        check_beside(path, making)
    hint, capability = HINTS[wanted.precision]
    if capability not in (known := openvino_capabilities()):
        able = [name for name, (_, word) in HINTS.items() if word in known]
        raise ConfigError(
            f"--precision {wanted.precision}: OpenVINO cannot compute so on this CPU; it can in {' and '.join(able)}"
        )
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "EXECUTION_MODE_HINT": "ACCURACY" if wanted.precision == "float32" else "PERFORMANCE",
        "INFERENCE_NUM_THREADS": wanted.threads,
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(path, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        logits = compiled(np.ascontiguousarray(images.cpu().numpy()))[0]
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return Started(run, torch.device("cpu"), openvino.__version__.split("-")[0])


def _aotinductor(wanted: Start) -> Started:
    artifact = wanted.artifact
    assert artifact.making is not None
    details = artifact.making.details
    device = torch.device(details["device"]) if wanted.device.type != details["device"] else wanted.device
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{artifact.path}: was compiled for CUDA, which is not here; export it again on this machine")
    if device.type == "cpu":
        there, here = details["cpu"], cpu()
        if there not in (here, *(f"{platform.machine()} {less}" for less in _less_than(here))):
            raise ConfigError(
                f"{artifact.path}: was compiled for {there}, and this machine is {here}; export it again here"
            )
        torch.set_num_threads(wanted.threads)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA
    from torch._inductor import aoti_load_package

    compiled = aoti_load_package(artifact.path, device_index=device.index or -1)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = compiled(images.to(device).contiguous())
        assert isinstance(logits, Tensor)
        return logits.to(images.device)

    return Started(run, device, torch.__version__)


def _torchscript(wanted: Start) -> Started:
    path = wanted.artifact.path
    if wanted.device.type == "cpu":
        torch.set_num_threads(wanted.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has successors
        program = torch.jit.load(path, map_location=wanted.device)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(images.to(wanted.device)).to(images.device)

    return Started(run, wanted.device, torch.__version__)


def _mindspore(wanted: Start) -> Started:
    """Run MindIR in a process of the Python that has MindSpore; it lives as long as what is returned."""
    path = wanted.artifact.path
    python = _mindspore_python()
    if python is None:
        raise MissingExtra(
            f"{path}: needs MindSpore; install it in an environment of its own (pip install mindspore==2.10.0 "
            f"'numpy<2') and give the path of its python in {MINDSPORE_PYTHON}"
        )
    environment = {**os.environ, "OMP_NUM_THREADS": str(wanted.threads), "GLOG_v": "3"}
    process = subprocess.Popen(
        [python, "-c", MINDSPORE_SCRIPT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    if (greeting := stdout.readline().decode().split())[:1] != ["MindSpore"]:
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
    """Return what computes how and where, in a few words."""
    return f"{engine}, {precision}, {f'{threads} threads' if device.type == 'cpu' else device}"


def has_mindspore() -> bool:
    """Say whether there is a Python that has MindSpore, here or where the environment says."""
    return _mindspore_python() is not None


def _mindspore_python() -> str | None:
    return os.environ.get(MINDSPORE_PYTHON) or (sys.executable if find_spec("mindspore") else None)


def cpu() -> str:
    """Return the kind of this machine and what PyTorch calls the instructions of its CPU."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _less_than(here: str) -> tuple[str, ...]:
    capability = here.split()[-1]
    return CAPABILITIES[: CAPABILITIES.index(capability)] if capability in CAPABILITIES else ()


@contextmanager
def _refusal_told(path: str, engine: Engine, deed: str) -> Iterator[None]:
    """Turn whatever a runtime raises for a file that it cannot load or run into one line.

    Raises:
        CheckpointError: In the runtime's own words.
    """
    try:
        yield
    except (VitrailError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # runtimes have kinds of their own, without a common name
        if engine == "torch":  # which runs our own code, whose faults keep their traceback
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # what stands above is places in OpenVINO's code
        reason = lines[-1] if engine == "openvino" else lines[0]
        raise CheckpointError(
            f"{path}: {TITLES[engine]} cannot {deed} it ({reason[:REASON]}); export it again"
        ) from error


def _checked(artifact: Artifact, run: Run) -> Run:
    """Return a function that also refuses what are no logits of the model that a file says it is."""
    path, engine, count = artifact.path, artifact.engine, artifact.record.options["num_classes"]

    def checked(images: Tensor) -> Tensor:
        with _refusal_told(path, engine, "run"):
            logits = run(images)
            if tuple(logits.shape) != (len(images), count) or not logits.is_floating_point():
                raise CheckpointError(
                    f"{path}: gives {logits.dtype} of shape {tuple(logits.shape)} for {len(images)} images, and no "
                    f"logits of {count} classes; export it again"
                )
            return logits.float()

    return checked


STARTS: Mapping[Engine, Callable[[Start], Started]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "aotinductor": _aotinductor,
    "torchscript": _torchscript,
    "mindspore": _mindspore,
}
TITLES: Mapping[Engine, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "aotinductor": "AOTInductor",
    "torchscript": "TorchScript",
    "mindspore": "MindSpore",
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra of this package that has an engine."""
