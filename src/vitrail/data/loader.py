"""Images read and stacked to batches by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Int64, UInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vitrail.data.sampling import BatchSampler, SampleKey
from vitrail.data.sources import PixelSource, Source
from vitrail.errors import DataError, LostWorker
from vitrail.images.pixels import PixelFormat, UnreadableImage
from vitrail.images.transforms import Preprocess, TrainView, sample_key

MAX_WORKERS = 8  # for each process: beyond, decoding on one machine gains little and memory is lost
IN_MEMORY_IMAGES = 10_000

ENDING_S = 1.0  # of a process whose connections are closed already

BadFiles = Literal["error", "skip", "quarantine"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or why there is none."""

    image: Tensor | None
    label: int
    index: int
    key: int
    bad: tuple[str, str] | None


class Batch(NamedTuple):
    """The readable images of a batch, which may be none; DataLoader pins it."""

    images: UInt[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    """In the source."""
    keys: Int64[Tensor, " b"]
    """What random draws follow from; 0 in evaluation."""
    bad: list[tuple[str, str]]
    """Name of each unreadable image, and the reason."""


def _read(source: Source, index: int, key: int, wanted: PixelFormat, view: Callable[[Tensor], Tensor]) -> Sample:
    label = int(source.labels[index])
    try:
        return Sample(view(source.image(index, wanted)), label, index, key, None)
    except UnreadableImage as error:
        return Sample(None, label, index, key, (source.name(index), str(error)))
    except OSError as error:
        return Sample(None, label, index, key, (source.name(index), error.strerror or type(error).__name__))


@dataclass(frozen=True)
class TrainImages(Dataset[Sample]):
    """Random views, addressed by (epoch, index, copy)."""

    source: Source
    view: TrainView
    wanted: PixelFormat
    seed: int

    def __getitem__(self, item: SampleKey) -> Sample:
        key = sample_key(self.seed, *item)
        return _read(self.source, item[1], key, self.wanted, lambda image: self.view.view(image, key))


@dataclass(frozen=True)
class EvalImages(Dataset[Sample]):
    """Evaluation views, addressed by index."""

    source: Source
    preprocess: Preprocess

    def __getitem__(self, item: int) -> Sample:
        return _read(self.source, item, 0, self.preprocess.pixels, self.preprocess.view)


@dataclass(frozen=True)
class _Collate:
    size: tuple[int, int]
    pixels: PixelFormat

    def __call__(self, samples: list[Sample]) -> Batch:
        good = [sample for sample in samples if sample.image is not None]
        # stacked as (h, w, c), which is how views lie in memory; default_collate writes to shared memory in a worker
        images = [sample.image.permute(1, 2, 0) for sample in good if sample.image is not None]
        nothing = torch.empty((0, *self.size, self.pixels.channels), dtype=self.pixels.dtype)
        stacked = default_collate(images) if images else nothing
        return Batch(
            images=stacked.permute(0, 3, 1, 2),
            labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
            indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
            keys=torch.tensor([sample.key for sample in good], dtype=torch.int64),
            bad=[sample.bad for sample in samples if sample.bad is not None],
        )


class ImageLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that stops at unreadable images, or leaves them in `bad`, as it is told."""

    def __init__(
        self, dataset: TrainImages | EvalImages, *, bad_files: BadFiles, workers: int | None, **options: Any
    ) -> None:
        workers = default_workers(dataset.source) if workers is None else workers
        super().__init__(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals,
            # its own generator: otherwise each epoch takes a number from the global state, and a resumed run differs
            generator=torch.Generator(),
            **options,
        )
        self.bad_files = bad_files
        self.on_lost: Callable[[str], None] | None = None
        """Told that a worker was killed, where the images still asked for are then to be read in this process."""

    def read(self, keys: Sequence[Any]) -> Batch:
        """Load one batch here and now."""
        batch = self.collate_fn([self.dataset[key] for key in keys])
        assert isinstance(batch, Batch)
        return batch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: An image cannot be read and bad_files is not "skip". It is raised here, in the training process:
                what a worker raises arrives wrapped in its traceback.
        """
        for batch in self._batches():
            if batch.bad and self.bad_files != "skip":
                name, reason = batch.bad[0]
                more = f" (and {len(batch.bad) - 1} more in this batch)" if len(batch.bad) > 1 else ""
                raise DataError(
                    f"{name}: cannot be read, {reason}{more}; repair or remove it, or set data.bad_files=skip to leave "
                    "such images out"
                )
            yield batch

    def _batches(self) -> Iterator[Batch]:
        taken = 0
        try:
            for batch in until_lost(super().__iter__, self.num_workers):
                taken += 1
                yield batch
        except DataError as error:  # of the whole source; from a worker it comes with a traceback, its own words last
            # less its frames: in torch's they hold the iterator in a circle, and its workers would not be told to end
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error.with_traceback(None)
        except LostWorker as error:
            self._iterator = None  # which ends the others, and frees their memory
            if self.on_lost is None:
                raise
            self.on_lost(error.cause)
        else:
            return
        assert self.batch_sampler is not None
        for keys in islice(self.batch_sampler, taken, None):
            yield self.read(keys)


_iterators: WeakSet[Any] = WeakSet()
"""Of the loaders that have workers."""
_waiting = False
"""Whether this process is in a loader."""


def until_lost(start: Callable[[], Iterator[Any]], workers: int) -> Iterator[Any]:
    """Yield what a DataLoader yields, until one of its workers, or of another loader's, is lost.

    Args:
        start: The loader's `__iter__`, which waits for its workers where they are there already.
        workers: That it has.

    Raises:
        LostWorker: One was killed by the system, or ran out of memory.
        DataError: One ended in another way, which the next will too.
    """
    batches = None
    while True:
        try:
            with _wait():
                if batches is None:
                    batches = start()
                    if workers:
                        _iterators.add(batches)
                        _tell_of_deaths_while_waiting()
                batch = next(batches)
        except StopIteration:
            return
        # torch's own, with the traceback of whatever it interrupted, and those of a connection whose other end died
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            status = _first_status(ENDING_S if isinstance(error, OSError | EOFError) else 0)
            if not status and not (workers and isinstance(error, MemoryError)):
                raise
            lost = _why(status or -signal.SIGKILL, workers)
            _iterators.clear()  # a traceback may hold them yet
        else:
            yield batch
            continue
        raise lost


def _first_status(patience_s: float) -> int:
    """Return the exit status of a worker that did not end well, after so long at most; 0 where none is known."""
    until = time.monotonic() + patience_s
    while True:
        found = next((worker.exitcode for one in _iterators for worker in one._workers if worker.exitcode), 0)
        if found or time.monotonic() >= until:
            return found
        time.sleep(0.01)


def _why(status: int, workers: int) -> LostWorker | DataError:
    """Say what the exit status of a worker means, and what to do."""
    end = signal.Signals(-status).name if status < 0 else f"status {status}"
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return LostWorker(
            f"{end} of a loader worker, most often because memory ran out (fewer data.workers than {workers} take less)"
        )
    if status == -signal.SIGBUS:
        return DataError(
            f"a loader worker ended with {end}, as /dev/shm is full; make it larger (docker run --shm-size), or set "
            f"fewer than {workers} data.workers"
        )
    return DataError(
        f"a loader worker ended with {end}, as by an image that its decoder falls over; data.workers=0 reads in the "
        "process itself, and `vitrail check-data` looks at every image"
    )


@contextmanager
def _wait() -> Iterator[None]:
    global _waiting
    _waiting = True
    try:
        yield
    finally:
        _waiting = False


def _tell_of_deaths_while_waiting() -> None:
    """Let torch raise for a dead worker only where a loader is waited for, not in the midst of an update or a save.

    Elsewhere nothing is lost by not raising: who waits for a worker that is dead looks for it.
    """
    theirs = signal.getsignal(signal.SIGCHLD)
    if not callable(theirs) or getattr(theirs, "waits", False):  # another thread than the first has none
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if _waiting:
            theirs(number, frame)

    hear.waits = True  # pyright: ignore[reportFunctionMemberAccess]
    signal.signal(signal.SIGCHLD, hear)


def build_train_loader(
    source: Source,
    view: TrainView,
    wanted: PixelFormat,
    sampler: BatchSampler,
    *,
    seed: int,
    workers: int | None = None,
    bad_files: BadFiles = "skip",
    pin_memory: bool = False,
) -> ImageLoader:
    """Load random views in the sampler's order; the same batches for any number of workers.

    An unreadable image is left out of its batch, never replaced, so a batch may be smaller or empty.

    Args:
        source: The images.
        view: Draws from each image.
        wanted: What every image is read as.
        sampler: Which images, in which order.
        seed: Of the views, with epoch, index and copy.
        workers: Processes that load; None is `default_workers`.
        bad_files: Whether an unreadable image is reported with its batch, or raises DataError.
        pin_memory: For a CUDA device.
    """
    assert sampler.n == len(source)
    return ImageLoader(
        TrainImages(source, view, wanted, seed),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=sampler,
        collate_fn=_Collate(view.size, wanted),
        pin_memory=pin_memory,
    )


def build_eval_loader(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    bad_files: BadFiles = "skip",
    pin_memory: bool = False,
) -> ImageLoader:
    """Load every image once, in order, whole batches dealt out to the processes in turn: no padding.

    The batches are the same for any number of processes, so what is computed from them is too.

    Raises:
        ConfigError: Batches of such images have no place in memory.
    """
    preprocess.check_batch(batch_size)
    batches = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    return ImageLoader(
        EvalImages(source, preprocess),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=batches[rank::world],
        collate_fn=_Collate(preprocess.size, preprocess.pixels),
        pin_memory=pin_memory,
    )


def default_workers(source: Source) -> int:
    """Return how many loader workers a process should have: its share of the machine's cores, within reason."""
    if isinstance(source, PixelSource) and len(source) <= IN_MEMORY_IMAGES:
        return 0  # starting them would take longer than reading
    return max(1, min(MAX_WORKERS, usable_cores() // processes_here()))


def leave_signals(worker: int) -> None:
    """Let a loader's worker be ended by the process that it works for, which Ctrl-C and a lost terminal are about."""
    for number in ("SIGINT", "SIGHUP"):
        if hasattr(signal, number):  # Windows has no terminal that hangs up
            signal.signal(getattr(signal, number), signal.SIG_IGN)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Return how many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun


def crowding(own: float, on_cpu: bool) -> tuple[str, str]:
    """Return how loaded this machine is and what to do, where other work alone would fill its cores; else nothing.

    The load average counts the tasks of the whole machine, so it is compared with all cores, not with the usable ones.

    Args:
        own: Tasks of this run that the load average counts too.
        on_cpu: Whether updates are computed there.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load - own <= cores:
        return "", ""
    found, threads = f"load average {load:.1f} on {cores} cores, which other work takes", torch.get_num_threads()
    if on_cpu and threads > 1:
        return found, f"{threads} threads that wait for each other take many times as long; set OMP_NUM_THREADS=1"
    return found, "training waits for its share; run less beside it, or lower data.workers where that is above 1"
