"""How fast models and exported files answer, and what they take: each in a process of its own, taking turns.

In one process, the threads of engines would wait for each other; taking turns, a machine that is busy slows all alike.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.devices import Precision, pick_device
from vitrail.display import Display
from vitrail.errors import ConfigError, VitrailError, closest
from vitrail.inference.engines import ENGINES, about, start_module
from vitrail.inference.network import open_artifact, read_artifact
from vitrail.models.family import ModelConfig
from vitrail.models.registry import build_config, create_model, find_variant, list_models
from vitrail.weights.checkpoint import config_of

RUNS = 5
"""Of one subject, before it is another's turn."""
WARMUPS = 3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    name: str
    """Of a model or a file."""
    model: str
    """Name of the architecture."""
    config: ModelConfig
    build: Callable[[], nn.Module] | None = None
    """What makes a model, in the process where it is measured; None opens the file."""
    engine: str | None = None
    """None is the usual one."""
    precision: Precision | None = None
    """None is the file's own, and float32."""
    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one subject takes for one batch size."""

    name: str
    about: str
    """Engine, precision and device."""
    batch_size: int
    p50_ms: float
    """To answer a batch, in the middle of all runs."""
    p99_ms: float
    images_per_s: float
    """At the median."""
    peak_mib: float
    """Memory of its process, PyTorch included, or of the GPU; so far, as batches are measured in turn."""
    params: int
    macs: int
    """Multiply-adds of one image."""
    runs: int


def find_subjects(names: Sequence[str], engines: Sequence[str] = (), **options: Any) -> list[Subject]:
    """Return what names stand for: models, which get fresh weights, or files, exported ones in the engines given.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A name of nothing, or an engine that cannot run a file.
    """
    found: list[Subject] = []
    for name in names:
        if name in list_models():
            build = partial(create_model, name)
            found.append(Subject(name=name, model=name, config=build_config(name), build=build, **options))
        elif Path(name).exists():
            for engine in (engines if Path(name).suffix in ENGINES else ()) or [None]:
                record = read_artifact(name, engine).record
                config = config_of(record, name)
                found.append(Subject(name=name, model=record.model, config=config, engine=engine, **options))
        else:
            raise ConfigError(f"{name}: is no file, and no model{closest(name, list_models()) or ''}")
    return found


def beside_timm(subjects: Sequence[Subject], **options: Any) -> tuple[list[Subject], list[str]]:
    """Return timm's counterparts of what is measured, and the models that it has none of at that size."""
    import timm

    wanted = {subject.model: subject.config for subject in subjects}
    # ours are there too once vitrail.timm is imported
    theirs = {name for name in wanted if timm.is_model(name) and timm.model_entrypoint(name).__module__[:5] == "timm."}
    lacking = [name for name, config in wanted.items() if name not in theirs or config.size != (224, 224)]
    found = [
        Subject(
            name=f"{name} of timm {timm.__version__}", model=name, config=config,
            build=partial(timm.create_model, name, num_classes=config.num_classes), **options,
        )
        for name, config in wanted.items()
        if name not in lacking
    ]  # fmt: skip
    return found, lacking


def bench(subjects: Sequence[Subject], batch_sizes: Sequence[int], rounds: int, display: Display) -> list[Measured]:
    """Measure all subjects at all batch sizes, in alternating rounds.

    Raises:
        VitrailError: A subject cannot be opened.
    """
    with ExitStack() as exits:
        workers = []
        display.begin("open", len(subjects))
        for subject in subjects:
            workers.append(exits.enter_context(closing(Worker(subject))))
            display.advance()
        display.end()
        seconds: dict[tuple[int, int], list[float]] = {}
        peaks: dict[tuple[int, int], float] = {}
        display.begin("bench", rounds * len(batch_sizes) * len(workers))
        for size in sorted(batch_sizes):
            for number in range(rounds):
                order = list(enumerate(workers))
                for which, worker in order if number % 2 else reversed(order):  # a drift of the machine favours nobody
                    taken, peaks[which, size] = worker.ask(size)
                    seconds.setdefault((which, size), []).extend(taken)
                    display.advance()
        display.end()
    results = []
    for which, worker in enumerate(workers):
        for size in sorted(batch_sizes):
            taken = np.array(seconds[which, size])
            median = float(np.median(taken))
            results.append(
                Measured(
                    name=worker.subject.name,
                    about=worker.about,
                    batch_size=size,
                    p50_ms=1000 * median,
                    p99_ms=1000 * float(np.quantile(taken, 0.99)),
                    images_per_s=size / median,
                    peak_mib=peaks[which, size],
                    params=worker.params,
                    macs=worker.macs,
                    runs=len(taken),
                )
            )
    return results


class Worker:
    """A process that has opened one subject.

    Raises:
        VitrailError: It cannot be opened, or has ended.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, subject), daemon=True)
        self._process.start()
        theirs.close()
        self.about, self.params, self.macs = self._receive()

    def ask(self, batch_size: int) -> tuple[list[float], float]:
        """Return the seconds of a few runs, and the peak of memory in MiB so far."""
        with suppress(BrokenPipeError):  # what became of it is told below
            self._connection.send(batch_size)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            status = self._process.exitcode
            raise VitrailError(
                f"{self.subject.name}: its process ended with status {status}; -9 is a system's that is short of memory"
            ) from error
        if isinstance(answer, VitrailError):
            self.close()
            raise answer
        return answer


def _work(connection: Connection, subject: Subject) -> None:
    """Answer batch sizes with seconds, as long as there are any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
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
            run(images[size])  # which brings the logits back to the CPU, so nothing is left to wait for
            if number >= 0:
                taken.append(time.perf_counter() - started)
        connection.send((taken, _peak_mib()))


def _open(subject: Subject) -> tuple[Callable[[Tensor], Tensor], str]:
    device = pick_device(subject.device)
    if subject.build is None:
        network = open_artifact(
            subject.name, subject.engine, precision=subject.precision, threads=subject.threads, device=device
        )
        return network, network.about
    precision, threads = subject.precision or "float32", subject.threads or torch.get_num_threads()
    model = subject.build().eval().to(device)
    said = about(f"torch {torch.__version__}", precision, device, threads)
    return start_module(model, device, precision, threads), said


def _costs(subject: Subject) -> tuple[int, int]:
    """Return the parameters and the multiply-adds of a subject's architecture."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model = find_variant(subject.model)[0].model(subject.config).eval()
        model(torch.empty(1, subject.config.in_channels, *subject.config.size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def _peak_mib() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the process had that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
