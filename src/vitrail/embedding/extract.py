"""Extract the features of images with a network, batch by batch, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.choices import Precision
from vitrail.data.loader import Batch, build_eval_loader
from vitrail.data.sources import Source
from vitrail.devices import autocast
from vitrail.distributed.processes import gather_to_first
from vitrail.errors import ConfigError, write_option
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.models.family import Pooling, VisionModel
from vitrail.weights.digest import digest_weights


@dataclass(frozen=True)
class Rows:
    """The features of images that follow each other in their source."""

    first: int
    """Index of the first image in the source."""
    values: NDArray[np.float32]
    """(b, d), one row an image; NaN for an image that cannot be read."""
    bad: tuple[tuple[int, str], ...]
    """Index in the source of each image that cannot be read, and the reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """A network with all that decides the features that it gives an image.

    Raises:
        ConfigError: The network has no such level or pooling.
    """

    model: VisionModel
    """The network, on the device that computes."""
    preprocess: Preprocess
    """How images are read."""
    level: int = -1
    """Index in the model's `feature_levels`; a negative one counts from the end."""
    pooling: Pooling = "head"
    """How the tokens of an image become one vector."""
    precision: Precision = "float32"
    """Precision of matrix products."""
    batch_size: int = 32
    """Images that are computed together."""

    def __post_init__(self) -> None:
        n = len(self.model.feature_levels)
        if not -n <= self.level < n:
            where = write_option("level", self.level)
            raise ConfigError(
                f"{where}: the model has levels 0 to {n - 1}, or {-n} to -1 from the end; give one "
                "of them"
            )
        if self.pooling not in self.model.poolings:
            has = ", ".join(self.model.poolings)
            raise ConfigError(
                f"{write_option('pool', self.pooling)}: the model has {has}; give one of them"
            )

    @property
    def num_features(self) -> int:
        """Numbers that an image gets."""
        return self.model.count_vector(self.level, self.pooling)

    @cached_property
    def description(self) -> dict[str, Any]:
        """All that decides the features of an image, as plain values for JSON.

        Two extractors with equal descriptions give the same features on the same kind of device.
        """
        return {
            "weights": digest_weights(self.model.state_dict(), {"config": repr(self.model.config)})[
                :32
            ],
            "preprocess": self.preprocess.to_dict(),
            "level": self.level % len(self.model.feature_levels),
            "pooling": self.pooling,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "num_features": self.num_features,
        }

    def compute(self, batch: Batch, places: range, device: torch.device) -> Rows:
        """Return the features of one batch.

        It is filled up to `batch_size` with black images, where images are missing: kernels differ
        by the size of a batch, and so would the last digits of the others' features.

        Args:
            batch: The images that can be read.
            places: Indices in the source of all images of the batch.
            device: Device of the network.
        """
        at = batch.indices - places.start
        images = normalise(
            batch.images.to(device, non_blocking=True), self.preprocess.mean, self.preprocess.std
        )
        filled = images.new_zeros(self.batch_size, *images.shape[1:])
        filled[at.to(device)] = images
        with torch.inference_mode(), autocast(device, self.precision):
            vectors = self.model.forward_vectors(filled, self.level, self.pooling).float().cpu()
        values = np.full((len(places), self.num_features), np.nan, np.float32)
        values[at.numpy()] = vectors[at].numpy()
        readable = set(batch.indices.tolist())
        missing = [index for index in places if index not in readable]
        reasons = [reason for _, reason in batch.bad]
        return Rows(places.start, values, tuple(zip(missing, reasons, strict=True)))


def extract_features(
    extractor: Extractor,
    source: Source,
    accelerator: Accelerator,
    *,
    workers: int | None = None,
    first: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> Iterator[Rows]:
    """Yield the features of all images in order, on the first process; memory does not grow with their number.

    Collective: every process takes all that comes, which is nothing but on the first. A batch is
    computed by one process, so a row does not depend on how many there are, or on where an earlier
    call was stopped.

    Args:
        extractor: The network, and how it is used.
        source: The images.
        accelerator: The processes.
        workers: Number of loader processes for each process; None chooses by the cores.
        first: Index of the image to begin with, a multiple of the extractor's `batch_size`.
        advance: Called with the number of images of each round, in which every process computes one
            batch.
    """
    size, world, n = extractor.batch_size, accelerator.num_processes, len(source)
    if first == n:
        return
    assert first % size == 0
    loader = build_eval_loader(
        source,
        extractor.preprocess,
        batch_size=size,
        rank=accelerator.process_index,
        world=world,
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        first=first // size,
    )
    batches = iter(loader)
    was_training = extractor.model.training
    extractor.model.eval()
    try:
        for begin in range(first, n, size * world):
            mine = begin + size * accelerator.process_index
            rows = None
            if mine < n:
                places = range(mine, min(mine + size, n))
                rows = extractor.compute(next(batches), places, accelerator.device)
            gathered = gather_to_first(accelerator, rows)
            yield from (one for one in gathered or () if one is not None)
            advance(min(size * world, n - begin))
    finally:
        extractor.model.train(was_training)
