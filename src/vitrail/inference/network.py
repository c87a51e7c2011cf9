"""Networks: a weight file or an exported file opened in its engine, which turns normalised images into logits.

Opening a .pt2 loads machine code from it, and a .torchscript is a program: open only files that you
wrote yourself. The other files hold data alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from vitrail.choices import Engine, Precision
from vitrail.display import Display
from vitrail.errors import CheckpointError, ConfigError, MissingExtra, VitrailError, write_option
from vitrail.inference.engines import ENGINES, EXTRAS, STARTS, TITLES, Run, Start, about
from vitrail.inference.exported import READERS, Making, Stored, describe
from vitrail.weights.checkpoint import Record
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened
from vitrail.weights.request import LoadRequest, check_described

PROGRAMS = (".pt2", ".torchscript")
"""Endings of files that their engines run code from; the other files hold data alone."""
REASON = 300
"""Most characters to repeat of a runtime's complaint about a file, which may quote all of the
file."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model that is ready to answer."""

    path: str
    record: Record
    """Model, class names, preprocessing and provenance."""
    engine: Engine
    precision: Precision
    device: torch.device
    """The device that computes."""
    about: str
    """Engine, its version, precision and device, in a few words."""
    batch_size: int | None
    """Images that the file takes at once; None takes any number. Calls may have any number all the
    same."""
    run: Run
    model: nn.Module | None = None
    """The module of a weight file, for what looks into it; an exported file has none."""

    @property
    def num_classes(self) -> int:
        """Number of the logits."""
        return self.record.options["num_classes"]

    def __call__(self, images: Tensor) -> Tensor:
        """Turn normalised float32 images (b, c, h, w) into float32 logits (b, k) on the images' own device.

        Raises:
            ValueError: The images are of another type or size; some runtimes would answer them with
                nonsense.
        """
        wanted = (self.record.options["in_channels"], *self.record.preprocess.size)
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images are {images.dtype} of {tuple(images.shape)}; {self.path} takes float32 "
                f"(b, {wanted})"
            )
        if len(images) == 0:
            return images.new_empty(0, self.num_classes)
        if self.batch_size is None:
            return self.run(images)
        logits = []
        for part in images.split(self.batch_size):
            # the file takes full batches alone, so black images fill up the last one
            filled = torch.cat([part, part.new_zeros(self.batch_size - len(part), *wanted)])
            logits.append(self.run(filled)[: len(part)])
        return torch.cat(logits)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A weight file or an exported file that was read, and of which nothing has run yet."""

    path: str
    record: Record
    engine: Engine
    weights: Opened | None = None
    """The weights of a weight file."""
    making: Making | None = None
    """How an exported file was made."""

    @property
    def stored_precision(self) -> Stored:
        """The precision that the file itself computes in: float32 for a weight file."""
        return "float32" if self.making is None else self.making.precision

    def start(
        self, device: torch.device, precision: Precision | None = None, threads: int | None = None
    ) -> Network:
        """Load the file into its engine.

        Args:
            device: Device that is wanted; an engine that cannot compute there takes the CPU.
            precision: Precision of the computation; None is the file's own, which only torch and
                OpenVINO can change.
            threads: Threads on the CPU; None is PyTorch's number.

        Raises:
            CheckpointError: The file is damaged.
            ConfigError: The engine cannot compute so.
            MissingExtra: The engine is not installed.
        """
        own = self.stored_precision
        if self.engine not in ("torch", "openvino") and precision not in (None, own):
            where = write_option("precision", precision)
            raise ConfigError(
                f"{where}: {self.path} computes in {own}, as it was exported; leave it out, or "
                "export the weight file anew"
            )
        if self.engine in EXTRAS and find_spec(self.engine) is None:
            raise MissingExtra(
                f"{self.path}: needs {self.engine}, which is not installed; run: pip install "
                f"'vitrail[{EXTRAS[self.engine]}]'"
            )
        # a file in 8 bits computes its other layers in float32
        own_of_floats: Precision = "float32" if own == "int8" else own
        start = Start(
            path=self.path,
            weights=self.weights,
            making=self.making,
            device=device,
            precision=precision or own_of_floats,
            threads=threads or torch.get_num_threads(),
        )
        with _refusal_told(self.path, self.engine, "load"):
            started = STARTS[self.engine](start)

        run = started.run
        if self.making is not None and self.making.input == "normalised":
            run = _checked(self, run)
        computes_in = start.precision if own != "int8" else f"int8 and {start.precision}"
        return Network(
            path=self.path,
            record=self.record,
            engine=self.engine,
            precision=start.precision,
            device=started.device,
            about=about(
                f"{self.engine} {started.version}", computes_in, started.device, start.threads
            ),
            batch_size=None if self.making is None else self.making.batch_size,
            run=run,
            model=started.model,
        )


def read_artifact(
    path: Path | str,
    engine: str | None = None,
    asked: LoadRequest | None = None,
    *,
    whole: bool = False,
    display: Display | None = None,
) -> Artifact:
    """Read a weight file, or what an exported file says of itself, without running anything.

    Args:
        path: The file, whose ending says what it is, or a name of published weights, which are
            fetched.
        engine: Engine that is to run it; None is the usual one.
        asked: How a weight file is to be read.
        whole: Take a file that preprocesses whole images itself, whose network has no logits but a
            `run`.
        display: Where the progress of a download is shown.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes and
            preprocessing.
        ConfigError: The engine cannot run the file, or a setting is not for such files.
    """
    chosen = _choose_engine(path, engine)
    if Path(path).suffix not in READERS:
        opened = open_model(path, asked, display)
        return Artifact(
            path=opened.account.path, record=opened.record, engine=chosen, weights=opened
        )
    if asked is not None and replace(asked, described=None) != LoadRequest():
        raise ConfigError(
            f"{path}: settings of `weights` are for weight files; give them when you export it"
        )
    described = describe(Path(path))
    if asked is not None:
        check_described(described.record, asked, str(path), exported=True)
    if described.making.input == "image" and not whole:
        raise ConfigError(
            f"{path}: reads whole images itself ({write_option('with_preprocess', True)}), one at "
            "a time; give the file exported without"
        )
    return Artifact(path=str(path), record=described.record, engine=chosen, making=described.making)


def _choose_engine(path: Path | str, engine: str | None) -> Engine:
    """Return the engine that is asked for, or the usual one of a file with this ending."""
    able: tuple[Engine, ...] = ENGINES.get(Path(path).suffix, ("torch",))
    if engine is None:
        return able[0]
    for name in able:
        if engine == name:
            return name
    if engine not in get_args(Engine):
        where = write_option("engine", engine)
        raise ConfigError(f"{where}: unknown; there are {', '.join(get_args(Engine))}")
    where = write_option("engine", engine)
    raise ConfigError(f"{where}: cannot run {path}; what can is {' or '.join(able)}")


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
        engine: Engine that is to run it; None is the usual one.
        precision: Precision of the computation; None is the file's own, float32 for weight files.
        threads: Threads on the CPU; None is PyTorch's number.
        device: Device that is wanted; an engine that cannot compute there takes the CPU.
        asked: How a weight file is to be read.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes and
            preprocessing.
        ConfigError: The engine cannot run it, or not so.
        MissingExtra: The engine is not installed.
    """
    return read_artifact(path, engine, asked).start(torch.device(device), precision, threads)


def tell_program(path: Path | str, display: Display) -> None:
    """Say of a file that holds code, before any of it runs, that opening it runs that code."""
    if Path(path).suffix in PROGRAMS:
        display.note(
            f"{path}: is a program, which runs with all your rights; open such files only from "
            "somebody you trust"
        )


def require_classes(record: Record, path: Path | str) -> None:
    """Refuse a model that tells no classes apart: without a head, or with one output that every image would be.

    Raises:
        ConfigError: The model has no head, or one output and no threshold for it.
    """
    count = record.options["num_classes"]
    if count == 0:
        raise ConfigError(
            f"{path}: has no head, so it gives features and no classes; give a file with its head, "
            f"or take the features in Python with vitrail.load_model({str(path)!r})"
        )
    if count == 1 and not record.is_multi_label:
        raise ConfigError(
            f"{path}: has one output, whose softmax is 1 for every image; drop "
            "weights.options.num_classes, or export "
            "the weight file anew, for two classes by its sigmoid"
        )


@contextmanager
def _refusal_told(path: str, engine: Engine, deed: str) -> Iterator[None]:
    """Turn any error of a runtime that cannot load or run a file into one line.

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
        # above its last line, OpenVINO names places in its own code
        reason = lines[-1] if engine == "openvino" else lines[0]
        raise CheckpointError(
            f"{path}: {TITLES[engine]} cannot {deed} it ({reason[:REASON]}); export it again"
        ) from error


def _checked(artifact: Artifact, run: Run) -> Run:
    """Return a function that also refuses answers that are no logits of the model that the file says it is."""
    path, engine, count = artifact.path, artifact.engine, artifact.record.options["num_classes"]

    def run_checked(images: Tensor) -> Tensor:
        with _refusal_told(path, engine, "run"):
            logits = run(images)
            # a model without classes gives its features, and does not say how many there are
            width = logits.shape[-1] if count == 0 and logits.ndim == 2 else count
            if tuple(logits.shape) != (len(images), width) or not logits.is_floating_point():
                raise CheckpointError(
                    f"{path}: gives {logits.dtype} of shape {tuple(logits.shape)} for "
                    f"{len(images)} images, and no logits of {count} classes; export it again"
                )
            return logits.float()

    return run_checked
