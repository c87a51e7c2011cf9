"""Data loaders: worker processes read images, apply a view and stack batches, equal for any number of workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64, UInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vitrail.data.lost_workers import until_lost
from vitrail.data.sampling import BatchSampler, SampleKey
from vitrail.data.sources import PixelSource, Source
from vitrail.errors import DataError, LostWorker
from vitrail.images.decoding import fast_decoders
from vitrail.images.pixels import PixelFormat, Pixels, UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import WHOLE, Place, TrainView, sample_key

MAX_WORKERS = 8
"""Most loader workers of a rank by default: beyond, decoding on one machine gains little and memory
is lost."""
IN_MEMORY_IMAGES = 10_000
"""Most images in memory that a rank loads without workers."""

HELD_BYTES = 2**24
"""Bytes of decoded images from which on their views are made, before more are decoded."""

BadFiles = Literal["error", "skip", "quarantine"]
Decoded = TypeVar("Decoded", bound=Tensor | str)
"""An image, or the reason why it cannot be read."""
Augment = Callable[[Tensor, Tensor], Tensor]
"""Varies the images of a batch by their keys, and may leave them on another device."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its label, or the reason why it cannot be read."""

    image: Tensor | None
    """The view, (c, h, w); None for an unreadable image."""
    label: int
    index: int
    """Index of the image in the source."""
    key: int
    """Seed of the random draws; 0 in evaluation."""
    bad: tuple[str, str] | None
    """Name of an unreadable image, and the reason."""
    place: Place = WHOLE
    """Where in the image a training view was cut out."""


class Batch(NamedTuple):
    """The readable images of a batch, which may be none; DataLoader pins it."""

    images: UInt[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    """Index of each image in the source."""
    keys: Int64[Tensor, " b"]
    """Seed of the random draws for each image; 0 in evaluation."""
    bad: list[tuple[str, str]]
    """Name of each unreadable image, and the reason."""
    places: Float[Tensor, "b 5"] | None = None
    """Where in its image each training view was cut out, as `Place` says."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """An image that is asked for."""

    index: int
    key: int
    view: Callable[[Tensor], tuple[Tensor, Place]]


def _read(source: Source, asked: Sequence[_Asked], wanted: PixelFormat) -> list[Sample]:
    """Decode images and make their views, some images at a time."""
    decoded = (_decode(source, one.index, wanted) for one in asked)
    samples = []
    for one, image in zip(asked, chain.from_iterable(group_by_size(decoded)), strict=True):
        label = int(source.labels[one.index])
        if isinstance(image, str):
            bad = (source.name(one.index), image)
            samples.append(Sample(None, label, one.index, one.key, bad))
        else:
            pixels, place = one.view(image)
            samples.append(Sample(pixels, label, one.index, one.key, None, place))
    return samples


def _decode(source: Source, index: int, wanted: PixelFormat) -> Pixels | str:
    """Return an image, or the reason why it cannot be read."""
    try:
        return source.image(index, wanted)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def group_by_size(images: Iterable[Decoded]) -> Iterator[list[Decoded]]:
    """Group images, which are taken one by one, so that a group is decoded before its views are made.

    Decoding leaves nothing in the processor's caches of what views need, code and all, and each
    view after an image of its own takes up to twice as long.
    """
    group: list[Decoded] = []
    size = 0
    for image in images:
        group.append(image)
        size += 0 if isinstance(image, str) else image.nbytes
        if size >= HELD_BYTES:
            yield group
            group, size = [], 0
    yield group


@dataclass(frozen=True)
class TrainImages(Dataset[Sample]):
    """Random views, addressed by (epoch, index, copy)."""

    source: Source
    view: TrainView
    wanted: PixelFormat
    """Pixel format that images are decoded to."""
    seed: int
    """Seed of the run."""
    views: int | None = None
    """Views of an image that come again, one an epoch in turn; None draws a new one each time."""

    def __getitem__(self, item: SampleKey) -> Sample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[SampleKey]) -> list[Sample]:
        """Return the samples of a batch; PyTorch asks for them together where there is this function."""
        return _read(self.source, [self._ask(*item) for item in items], self.wanted)

    def _ask(self, epoch: int, index: int, copy: int) -> _Asked:
        view = epoch if self.views is None else epoch % self.views
        key = sample_key(self.seed, view, index, copy)
        return _Asked(index, key, lambda image: self.view.draw(image, key))


@dataclass(frozen=True)
class EvalImages(Dataset[Sample]):
    """Evaluation views, addressed by index."""

    source: Source
    preprocess: Preprocess

    def __getitem__(self, item: int) -> Sample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; PyTorch asks for them together where there is this function."""
        asked = [
            _Asked(item, 0, lambda image: (self.preprocess.view(image), WHOLE)) for item in items
        ]
        return _read(self.source, asked, self.preprocess.pixels)


@dataclass(frozen=True)
class _Collate:
    """Stacks samples to a batch, without the unreadable ones."""

    size: tuple[int, int]
    """Height and width of the views."""
    pixels: PixelFormat

    def __call__(self, samples: list[Sample]) -> Batch:
        images, labels, indices, keys, bad, places = [], [], [], [], [], []
        for sample in samples:
            if sample.image is not None:
                # stacked as (h, w, c), which is how views lie in memory
                images.append(sample.image.permute(1, 2, 0))
                labels.append(sample.label)
                indices.append(sample.index)
                keys.append(sample.key)
                places.append(sample.place)
            if sample.bad is not None:
                bad.append(sample.bad)
        if images:
            stacked = default_collate(images)  # which writes to shared memory in a worker
        else:
            stacked = torch.empty((0, *self.size, self.pixels.channels), dtype=self.pixels.dtype)
        return Batch(
            images=stacked.permute(0, 3, 1, 2),
            labels=torch.tensor(labels, dtype=torch.int64),
            indices=torch.tensor(indices, dtype=torch.int64),
            keys=torch.tensor(keys, dtype=torch.int64),
            bad=bad,
            places=torch.tensor(places, dtype=torch.float32).reshape(-1, 5),
        )


class ImageLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that stops at unreadable images, or leaves them in `bad`, as it is told."""

    def __init__(
        self,
        dataset: TrainImages | EvalImages,
        *,
        bad_files: BadFiles,
        workers: int | None,
        augment: Augment | None = None,
        **options: Any,
    ) -> None:
        workers = choose_workers(dataset.source) if workers is None else workers
        super().__init__(
            dataset,
            **with_workers(workers),
            persistent_workers=workers > 0,
            # its own generator: otherwise each epoch takes a number from the global state, and a
            # resumed run differs
            generator=torch.Generator(),
            **options,
        )
        self.bad_files = bad_files
        self.augment = augment
        self.on_lost: Callable[[str], None] | None = None
        """Called when a worker was killed, with the cause; the images still asked for are then read
        in this process. Without it, LostWorker is raised."""

    def read(self, keys: Sequence[Any]) -> Batch:
        """Load one batch here and now."""
        assert isinstance(self.dataset, TrainImages | EvalImages)
        batch = self.collate_fn(self.dataset.__getitems__(keys))
        assert isinstance(batch, Batch)
        return self._augment(batch)

    def _augment(self, batch: Batch) -> Batch:
        """Vary whole batches, in the process that asked for them."""
        if self.augment is None or not len(batch.labels):
            return batch
        return batch._replace(images=self.augment(batch.images, batch.keys))

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: An image cannot be read and bad_files is not "skip". It is raised here, in
                the training process: what a worker raises arrives wrapped in its traceback.
        """
        for batch in self._batches():
            if batch.bad and self.bad_files != "skip":
                raise DataError(_describe_bad(batch.bad))
            yield batch

    def _batches(self) -> Iterator[Batch]:
        taken = 0
        try:
            for batch in until_lost(super().__iter__, self.num_workers):
                taken += 1
                yield self._augment(batch)
            return
        except DataError as error:
            # it concerns the whole source; from a worker it comes with a traceback, its own words
            # last
            message = str(error).rpartition("DataError: ")[2].strip()
            # without its frames: in torch's they hold the iterator in a circle, and its workers
            # would not be ended
            raise DataError(message) from error.with_traceback(None)
        except LostWorker as error:
            self._iterator = None  # which ends the others, and frees their memory
            if self.on_lost is None:
                raise
            self.on_lost(error.cause)
        assert self.batch_sampler is not None
        for keys in islice(self.batch_sampler, taken, None):
            yield self.read(keys)


def _describe_bad(bad: list[tuple[str, str]]) -> str:
    """Return the error message of a batch with unreadable images."""
    name, reason = bad[0]
    more = f" (and {len(bad) - 1} more in this batch)" if len(bad) > 1 else ""
    return (
        f"{name}: cannot be read, {reason}{more}; repair or remove it, or set data.bad_files=skip "
        "to leave such images out"
    )


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
    views: int | None = None,
    augment: Augment | None = None,
) -> ImageLoader:
    """Load random views in the sampler's order; the same batches for any number of workers.

    An unreadable image is left out of its batch, never replaced, so a batch may be smaller or
    empty.

    Args:
        source: The images.
        view: The random view that is drawn from each image.
        wanted: Pixel format that images are decoded to.
        sampler: Which images, in which order.
        seed: Seed of the run; views are drawn by it, epoch, index and copy.
        workers: Number of worker processes; None is `choose_workers`.
        bad_files: Whether an unreadable image is reported with its batch, or raises DataError.
        pin_memory: Whether batches are copied to pinned memory, for a CUDA device.
        views: Views of an image that come again, one an epoch in turn; None draws a new one each
            time.
        augment: Varies whole batches in this process, where not all of it is done by the workers.
    """
    assert sampler.n == len(source)
    return ImageLoader(
        TrainImages(source, view, wanted, seed, views),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=sampler,
        collate_fn=_Collate(view.size, wanted),
        pin_memory=pin_memory,
        augment=augment,
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
    first: int = 0,
    batches: Sequence[range] | None = None,
) -> ImageLoader:
    """Load every image once, in order, whole batches dealt out to the ranks in turn: no padding.

    The batches are the same for any number of ranks, so what is computed from them is too.

    Args:
        source: The images.
        preprocess: How each is read.
        batch_size: Images that are stacked together.
        rank: Number of this process.
        world: Number of processes.
        workers: Number of worker processes; None is `choose_workers`.
        bad_files: Whether an unreadable image is reported with its batch, or raises DataError.
        pin_memory: Whether batches are copied to pinned memory, for a CUDA device.
        first: Number of the batch to begin with, where those before it are done.
        batches: Indices of the images of each batch, where it is not all of them.

    Raises:
        ConfigError: Batches of such images have no place in memory.
    """
    preprocess.check_batch(batch_size)
    n = len(source)
    if batches is None:
        batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    return ImageLoader(
        EvalImages(source, preprocess),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=batches[first:][rank::world],
        collate_fn=_Collate(preprocess.size, preprocess.pixels),
        pin_memory=pin_memory,
    )


def choose_workers(source: Source) -> int:
    """Return how many loader workers a rank should have: its share of the machine's cores, within reason."""
    if isinstance(source, PixelSource) and len(source) <= IN_MEMORY_IMAGES:
        return 0  # starting them would take longer than reading
    return max(1, min(MAX_WORKERS, count_usable_cores() // count_local_processes()))


def with_workers(workers: int) -> dict[str, Any]:
    """Return what a DataLoader is told of its worker processes, which read images.

    On Linux they are forked, whatever Python's own choice is, which is another from 3.14 on: forked
    workers share the list of images and the decoders, and do not import the program of a user
    again, which would have to be written for that.
    """
    is_forked = workers > 0 and sys.platform == "linux"
    if workers > 0:
        fast_decoders()  # imported once, before workers are forked, and not by each of them
    return {
        "num_workers": workers,
        "worker_init_fn": begin_worker,
        "multiprocessing_context": "fork" if is_forked else None,
    }


def begin_worker(worker: int) -> None:
    """Let a loader's worker be ended by the process that it works for alone, and say nothing when that is gone."""
    for number in ("SIGINT", "SIGHUP"):
        if hasattr(signal, number):  # Windows has no terminal that hangs up
            signal.signal(getattr(signal, number), signal.SIG_IGN)
    sys.excepthook = _say_nothing_of_a_lost_process


def _say_nothing_of_a_lost_process(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error of the thread that hands tensors over, unless it is that nobody takes them any more.

    Whatever fails in reading images goes to the process that the worker works for, and not here.
    """
    if not isinstance(error, EOFError | OSError):
        sys.__excepthook__(kind, error, trace)


def count_usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_local_processes() -> int:
    """Return how many ranks of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun


def find_crowding(own: float, on_cpu: bool) -> tuple[str, str]:
    """Return what is wrong and what to do, where other work alone would fill this machine's cores; else empty texts.

    The load average counts the tasks of the whole machine, so it is compared with all cores, not
    with the usable ones.

    Args:
        own: Tasks of this run that the load average counts too.
        on_cpu: Whether updates are computed on the CPU.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load - own <= cores:
        return "", ""
    what = f"load average {load:.1f} on {cores} cores, which other work takes"
    threads = torch.get_num_threads()
    if on_cpu and threads > 1:
        return (
            what,
            f"{threads} threads that wait for each other take many times as long; set "
            "OMP_NUM_THREADS=1",
        )
    return (
        what,
        "training waits for its share; run less beside it, or lower data.workers where that is "
        "above 1",
    )
