"""Benchmark of inference: latency, throughput, memory and cost of models and exported files, side by side.

Each has a process of its own: in one, the threads of engines would wait for each other. They take
turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.choices import Device, Precision
from vitrail.devices import pick_device
from vitrail.display import Display
from vitrail.errors import ConfigError, VitrailError, names_flags, naming_flags, suggest
from vitrail.inference.engines import ENGINES, about, start_module
from vitrail.inference.network import open_artifact, read_artifact
from vitrail.kernels.prepare import prepare_kernels
from vitrail.models.catalogue import measure_costs
from vitrail.models.family import ModelConfig
from vitrail.models.registry import (
    build_config,
    create_model,
    find_variant,
    is_model,
    kernels_of,
    list_models,
)
from vitrail.weights.checkpoint import config_of
from vitrail.weights.published.catalogue import is_published

RUNS = 5
"""Timed runs of one subject, before it is another's turn."""
WARMUPS = 3
"""Runs before the first timed one of each batch size."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model or a file to measure."""

    name: str
    """Name of the model, or path of the file."""
    model: str
    """Name of the architecture."""
    config: ModelConfig
    build: Callable[[], nn.Module] | None = None
    """Builds the model, in the process where it is measured; None opens the file."""
    engine: str | None = None
    """Engine of an exported file; None is the usual one."""
    precision: Precision | None = None
    """Precision of the computation; None is an exported file's own, and float32 for models."""
    device: Device = "auto"
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Time and memory of one subject at one batch size."""

    name: str
    about: str
    """Engine, precision and device."""
    batch_size: int
    p50_ms: float
    """Median time to answer a batch."""
    p99_ms: float
    """Time that 99 of 100 runs stay below."""
    images_per_s: float
    """Images of a batch by the median time."""
    peak_mib: float
    """Peak memory of its process, PyTorch included, or of the GPU; from the start on, smaller
    batches included."""
    params: int
    macs: int
    """Multiply-adds of one image."""
    runs: int
    """Timed runs."""


def find_subjects(
    names: Sequence[str],
    engines: Sequence[str] = (),
    display: Display | None = None,
    **options: Any,
) -> list[Subject]:
    """Return the subjects that names stand for: models with fresh weights, or files, exported ones in each engine.

    Args:
        names: Of models, whose weights say nothing about their speed and are fresh; of other
            published weights, which are fetched; or paths.
        engines: Engines that run exported files.
        display: Where the progress of a download is shown.
        options: Further fields of the subjects.

    Raises:
        CheckpointError: A file cannot be read, or published weights cannot be had.
        ConfigError: A name is neither a model nor a file, or an engine cannot run a file.
    """
    subjects: list[Subject] = []
    for name in names:
        if is_model(name):
            build = partial(create_model, name)
            subjects.append(
                Subject(name=name, model=name, config=build_config(name), build=build, **options)
            )
        elif Path(name).exists() or is_published(name):
            is_exported = Path(name).suffix in ENGINES
            wanted: Sequence[str | None] = engines if is_exported and engines else [None]
            for engine in wanted:
                record = read_artifact(name, engine, display=display).record
                config = config_of(record, name)
                subjects.append(
                    Subject(name=name, model=record.model, config=config, engine=engine, **options)
                )
        else:
            raise ConfigError(
                f"{name}: is no file, and no model{suggest(name, list_models()) or ''}"
            )
    return subjects


def beside_timm(subjects: Sequence[Subject], **options: Any) -> tuple[list[Subject], list[str]]:
    """Return timm's counterparts of the subjects' models, and the names of models that timm lacks at that size."""
    import timm

    counterparts: list[Subject] = []
    lacking: list[str] = []
    for name, config in {subject.model: subject.config for subject in subjects}.items():
        # our models are timm's too once vitrail.timm is imported
        is_theirs = timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith(
            "timm."
        )
        if not is_theirs or config.size != (224, 224):
            lacking.append(name)
            continue
        build = partial(timm.create_model, name, num_classes=config.num_classes)
        title = f"{name} of timm {timm.__version__}"
        counterparts.append(Subject(name=title, model=name, config=config, build=build, **options))
    return counterparts, lacking


def bench(
    subjects: Sequence[Subject], batch_sizes: Sequence[int], rounds: int, display: Display
) -> list[Measured]:
    """Measure all subjects at all batch sizes, in alternating rounds.

    Raises:
        VitrailError: A subject cannot be opened.
    """
    sizes = sorted(batch_sizes)
    with ExitStack() as exits:
        workers: list[Worker] = []
        display.begin("open", len(subjects))
        for subject in subjects:
            workers.append(exits.enter_context(closing(Worker(subject))))
            display.advance()
        display.end()

        display.begin("bench", rounds * len(sizes) * len(workers))
        for size in sizes:
            for number in range(rounds):
                # every other round goes backwards, so that a drift of the machine favours nobody
                in_turn = workers if number % 2 else reversed(workers)
                for worker in in_turn:
                    worker.measure(size)
                    display.advance()
        display.end()
    return [worker.measured(size) for worker in workers for size in sizes]


class Worker:
    """A process that has opened one subject, and the times that it took.

    Raises:
        VitrailError: The subject cannot be opened, or its process has ended.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._connection, theirs = multiprocessing.Pipe()
        self._process = _start_answering(theirs)
        theirs.close()
        self._connection.send(subject)
        self._seconds: dict[int, list[float]] = {}
        self._peak_mib: dict[int, float] = {}
        self.about, self.params, self.macs = self._receive()

    def measure(self, batch_size: int) -> None:
        """Time a few runs."""
        # a process that has ended is told of when its answer is awaited
        with suppress(BrokenPipeError):
            self._connection.send(batch_size)
        seconds, self._peak_mib[batch_size] = self._receive()
        self._seconds.setdefault(batch_size, []).extend(seconds)

    def measured(self, batch_size: int) -> Measured:
        """Return the numbers of all runs with a batch size."""
        seconds = np.array(self._seconds[batch_size])
        median = float(np.median(seconds))
        return Measured(
            name=self.subject.name,
            about=self.about,
            batch_size=batch_size,
            p50_ms=1000 * median,
            p99_ms=1000 * float(np.quantile(seconds, 0.99)),
            images_per_s=batch_size / median,
            peak_mib=self._peak_mib[batch_size],
            params=self.params,
            macs=self.macs,
            runs=len(seconds),
        )

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            status = self._process.wait()
            raise VitrailError(
                f"{self.subject.name}: its process ended with status {status}; -9 is a system's "
                "that is short of memory"
            ) from error
        if isinstance(answer, VitrailError):
            self.close()
            raise answer
        return answer


def _start_answering(connection: Connection) -> subprocess.Popen[bytes]:
    """Start a process that answers at the other end of a connection.

    It imports this module alone: multiprocessing would run the script again that calls
    `vitrail.bench`, and with it that call.
    """
    number = connection.fileno()
    program = f"from vitrail.inference.bench import answer; answer({number}, flags={names_flags()})"
    # it finds the modules that this process would find, and not those of the folder that it happens
    # to be in
    places = [place or str(Path.cwd()) for place in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        pass_fds=[number],
    )


def answer(number: int, *, flags: bool) -> None:
    """Be the process of one subject: answer each batch size with the seconds of a few runs and the peak of memory.

    Args:
        number: File descriptor of the connection, on which the subject comes first.
        flags: Whether messages name options by the flags of the command line.
    """
    # Ctrl-C is for the process that asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(number)
    subject: Subject = connection.recv()
    try:
        with naming_flags(flags):
            run, said = _open(subject)
    except VitrailError as error:
        connection.send(error)
        return
    connection.send((said, *_costs(subject)))
    images: dict[int, Tensor] = {}
    while True:
        try:
            size = connection.recv()
        except EOFError:
            return
        warmups = 0 if size in images else WARMUPS
        images.setdefault(size, torch.randn(size, subject.config.in_channels, *subject.config.size))
        taken = []
        for number in range(-warmups, RUNS):
            started = time.perf_counter()
            # the logits come back to the CPU, so nothing is left to wait for
            run(images[size])
            if number >= 0:
                taken.append(time.perf_counter() - started)
        connection.send((taken, _peak_mib()))


def _open(subject: Subject) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a function from images to logits, and what computes it in a few words."""
    device = pick_device(subject.device)
    if subject.build is None:
        network = open_artifact(
            subject.name,
            subject.engine,
            precision=subject.precision,
            threads=subject.threads,
            device=device,
        )
        return network, network.about
    precision, threads = subject.precision or "float32", subject.threads or torch.get_num_threads()
    prepare_kernels(kernels_of(subject.model), device.type, lambda _: None)
    model = subject.build().eval().to(device)
    said = about(f"torch {torch.__version__}", precision, device, threads)
    return start_module(model, device, precision, threads), said


def _costs(subject: Subject) -> tuple[int, int]:
    """Return the parameters and the multiply-adds of a subject's architecture."""
    costs = measure_costs(find_variant(subject.model)[0], subject.config)
    return costs.params, costs.macs


def _peak_mib() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    # ru_maxrss begins with the memory of the process that started this one
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    # where there is no /proc, on macOS, it counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
