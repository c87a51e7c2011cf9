"""Benchmark data loading: seconds of each stage for an image, and the loader's speed beside the model's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from vitrail.config.commands import TrainConfig
from vitrail.data.loader import Batch, Sample, TrainImages, count_usable_cores
from vitrail.data.opening import list_files_read
from vitrail.data.sampling import SampleKey
from vitrail.display import Display
from vitrail.distributed.launch import count_processes
from vitrail.distributed.processes import choose_precision, processes
from vitrail.errors import ConfigError, DataError
from vitrail.files import refuse_replacing
from vitrail.images.decoding import decode, decoder_name
from vitrail.images.pixels import UnreadableImage
from vitrail.images.train_view import sample_key
from vitrail.models.family import VisionModel
from vitrail.training.optim.optimizers import set_learning_rate
from vitrail.training.run.stop import Stop
from vitrail.training.setup import Job, build_job, build_state
from vitrail.training.step import mixing_keys, train_step
from vitrail.training.stopwatch import Stopwatch

STAGES = {
    "read": "from the disk, or the system's memory where it was read before",
    "decode": "the file's bytes to pixels",
    "transform": "crop, resize, mirror, policy",
    "collate": "images to a batch",
    "copy": "to the device",
}
SAMPLE = 256
"""Images that the stages are timed with."""
AT_ONCE = 64
"""Images that are stacked to a batch in the stage collate."""
FIRST_ON_CPU = 8
"""Images of the first update on a CPU; later ones have as many as its time allows."""
SHARE_OF_UPDATE = 0.25
"""Share of the time for measuring that an update on a CPU may take."""
ROOM = 1.1
"""Times the model's speed that a loader should have."""


@dataclass(frozen=True)
class DataSpeed:
    """Speeds of the loader and of the model on this machine."""

    seconds: dict[str, float]
    """Seconds of one core for one image, by stage."""
    workers: int
    loader: float
    """Images per second of the whole loader."""
    model: float
    """Images per second of training updates on images that are there already."""
    device: str
    at_once: int
    """Images of each update that was timed."""
    unreadable: int
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "ms_per_image": {stage: 1000 * value for stage, value in self.seconds.items()},
            "loader": {"workers": self.workers, "images_per_s": self.loader},
            "model": {
                "device": self.device,
                "images_at_once": self.at_once,
                "images_per_s": self.model,
            },
            "unreadable": self.unreadable,
            "advice": self.advice,
        }


def bench_data(
    config: TrainConfig, seconds: float, display: Display, written: Sequence[tuple[str, Path]] = ()
) -> DataSpeed:
    """Time the stages of loading on one core, the loader as training uses it, and the model's updates.

    Args:
        config: All settings of a training.
        seconds: Seconds to time the loader for, and the model too; the stages take about as long.
        display: Where progress is shown.
        written: Files that are written afterwards, by the option that names each; none may be one
            of the images.

    Raises:
        ConfigError: Several processes, or settings that do not fit.
        DataError: The images are not there, or none of the sample can be read.
    """
    settings = config.train
    if count_processes() > 1:
        raise ConfigError("bench-data measures one process; start it without torchrun")
    precision = choose_precision(settings.precision, settings.device)
    with processes(precision, settings.device) as accelerator, Stop(None) as stop:
        torch.manual_seed(settings.seed)
        job, model = build_job(config, accelerator, precision, display, stop)
        for flag, file in written:
            for source in (job.data.train, job.data.val):
                refuse_replacing(flag, file, list_files_read(config.data, source))
        display.begin("time the stages, the loader and the model", 3)
        stages, unreadable = time_stages(job)
        display.advance()
        batch, loader = time_loader(job, seconds)
        display.advance()
        at_once, speed = time_model(job, model, batch, seconds)
        display.end()
        workers = job.loader.num_workers
        return DataSpeed(
            seconds=stages,
            workers=workers,
            loader=loader,
            model=speed,
            device=accelerator.device.type,
            at_once=at_once,
            unreadable=unreadable,
            advice=advise(stages, workers, count_usable_cores(), loader, speed),
        )


def time_stages(job: Job) -> tuple[dict[str, float], int]:
    """Return the seconds of each stage for an image on one core, and how many of the sample cannot be read."""
    dataset = job.loader.dataset
    assert isinstance(dataset, TrainImages)
    keys = list(islice(chain.from_iterable(job.sampler), SAMPLE))
    dataset[keys[0]]  # imports what views need
    spent = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        spent[stage] += time.perf_counter() - begun
        return result

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        samples = []
        for key in keys:
            sample = _prepared(dataset, key, timed)
            if sample is not None:
                samples.append(sample)
        if not samples:
            raise DataError(
                f"{job.data.train.description}: none of {len(keys)} images could be read"
            )
        for start in range(0, len(samples), AT_ONCE):
            batch = timed(
                "collate",
                lambda chunk=samples[start : start + AT_ONCE]: job.loader.collate_fn(chunk),
            )
            images = batch.images.pin_memory() if job.loader.pin_memory else batch.images
            timed(
                "copy", lambda images=images: images.to(job.accelerator.device).flatten()[-1].item()
            )
    finally:
        torch.set_num_threads(threads)
    return {stage: value / len(samples) for stage, value in spent.items()}, len(keys) - len(samples)


def _prepared(
    dataset: TrainImages, key: SampleKey, timed: Callable[[str, Callable[[], Any]], Any]
) -> Sample | None:
    """Read, decode and vary one image as a worker does; None if it cannot be read."""
    source, index = dataset.source, key[1]
    try:
        data = timed("read", lambda: source.encoded(index))
        if data is None:
            image = timed("read", lambda: source.image(index, dataset.wanted))
        else:
            image = timed("decode", lambda: decode(data, dataset.wanted))
    except (UnreadableImage, OSError):
        return None
    view = timed("transform", lambda: dataset.view.view(image, sample_key(dataset.seed, *key)))
    return Sample(view, 0, index, 0, None)


def time_loader(job: Job, seconds: float) -> tuple[Batch, float]:
    """Return a batch, and the images per second of the loader once its workers are busy."""
    batches = _endless(job)
    held = next(batches)
    for _ in range(2 * job.loader.num_workers):
        next(batches)
    images = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        batch = next(batches)
        images += len(batch.labels) + len(batch.bad)
        held = batch if len(batch.labels) > len(held.labels) else held
    return held, images / (time.perf_counter() - begun)


def _endless(job: Job) -> Iterator[Batch]:
    while True:
        yield from job.loader
        job.sampler.epoch += 1


def time_model(job: Job, model: VisionModel, batch: Batch, seconds: float) -> tuple[int, float]:
    """Return how many images an update was made of, and the images per second of updates with them."""
    accelerator, state = job.accelerator, build_state(job, model)
    if job.config.train.compile:
        model.compile()
    wrapped = accelerator.prepare_model(model)
    optimizer = accelerator.prepare_optimizer(state.optimizer)
    set_learning_rate(optimizer, 0.0)  # the weights stay as they are
    wrapped.train()
    watch = Stopwatch(accelerator.device, {})

    def update(images: int) -> float:
        """Make an update of so many images, and return the seconds that it took."""
        begun = time.perf_counter()
        columns = ("images", "labels", "indices", "keys", "places")
        cut = {name: getattr(batch, name)[:images] for name in columns}
        micro_batch = Batch(**cut, bad=[])
        keys = mixing_keys(job.config, job.sampler, 0, 0)[:1]
        sums, _, _ = train_step(job, wrapped, optimizer, [micro_batch], keys, watch)
        if state.ema:
            state.ema.update(model)
        sums.tolist()  # waits for the device
        return time.perf_counter() - begun

    images = len(batch.labels)
    if accelerator.device.type == "cpu" and images > FIRST_ON_CPU:
        update(FIRST_ON_CPU)
        times = max(1, int(SHARE_OF_UPDATE * seconds / update(FIRST_ON_CPU)))
        images = min(times * FIRST_ON_CPU, images)
    update(images)
    begun, updates = time.perf_counter(), 0
    while updates == 0 or time.perf_counter() - begun < seconds:
        update(images)
        updates += 1
    return images, updates * images / (time.perf_counter() - begun)


def rate(images_per_s: float) -> str:
    """Write a speed with two digits at least."""
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


def advise(stages: dict[str, float], workers: int, cores: int, loader: float, model: float) -> str:
    """Say in a line whether the model waits for images, and what would help most."""
    beside = f"the loader prepares {rate(loader)} images/s and the model takes {rate(model)}"
    if loader >= ROOM * model:
        return f"{beside}: images are no bottleneck"
    needed = math.ceil(
        ROOM * model * sum(stages[stage] for stage in ("read", "decode", "transform", "collate"))
    )
    if max(workers, 1) < min(needed, cores):
        return f"{beside}: the model waits; this machine has {cores} cores, set data.workers={min(needed, cores)}"
    decoding = (
        "pip install torchcodec"
        if decoder_name() == "pillow"
        else "`vitrail resize-data` makes it quicker"
    )
    remedies = {
        "read": "reading takes longest: a faster disk, or `vitrail pack` for many small files",
        "decode": f"decoding takes longest: {decoding}",
        "transform": "the views take longest: a lighter augment.auto_augment",
    }
    slowest = max(remedies, key=lambda stage: stages[stage])
    return f"{beside}: the model waits, and of {cores} cores it would take {needed}; {remedies[slowest]}"
