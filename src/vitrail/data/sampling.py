"""Which images a training step sees: a pure function of seed, epoch, step and process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ConfigError

SampleKey = tuple[int, int, int]
"""Epoch, index of the image, and which copy of it."""


def epoch_order(n: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch.

    Args:
        n: Images.
        seed: Of the run.
        epoch: From 0.
        repeats: Copies of each image in a row (repeated augmentation, Hoffer et al. 2020). The epoch is cut to n
            samples, so that it stays as long and sees n / repeats of the images.
    """
    # Philox's raw stream is fixed for ever, NumPy's permutation is not
    raw = np.random.Philox(key=np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)).random_raw(n)
    images = np.argsort(raw, kind="stable")[: -(-n // repeats)]
    order = np.stack([np.repeat(images, repeats), np.tile(np.arange(repeats), len(images))], axis=1)
    return order[:n]


class BatchSampler:
    """The training samples of one process, batch by batch; a pure function of its settings, `epoch` and `first_step`.

    The global batch of a step is a slice of the epoch's order, whatever the number of processes. It is cut into
    `accumulate` micro batches, and each of those is dealt out to the processes in turn, so that copies of an image
    part. The rest of an epoch that fills no global batch is left out; the next epoch's order is another.

    Args:
        n: Images.
        batch_size: Of one optimizer step, over all processes and micro batches.
        seed: Of the run.
        rank: This process.
        world: Number of processes.
        accumulate: Micro batches of a step.
        repeats: Copies of each image, see `epoch_order`.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        repeats: int = 1,
    ) -> None:
        parts = world * accumulate
        if batch_size < 1 or batch_size % parts:
            below, above = batch_size // parts * parts, -(-max(batch_size, 1) // parts) * parts
            nearest = " or ".join(str(size) for size in sorted({below, above} - {0}))
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be split over {world} processes x {accumulate} micro batches; "
                f"nearest: {nearest}"
            )
        if n < batch_size:
            raise ConfigError(
                f"train.batch_size {batch_size} is more than the {n} training images; set train.batch_size to at most "
                f"{n // parts * parts}"
                if n >= parts
                else f"train.batch_size {batch_size} is more than the {n} training images, too few for {parts} parts"
            )
        self.n, self.batch_size, self.seed, self.repeats = n, batch_size, seed, repeats
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.epoch = 0
        self.first_step = 0
        """Steps of the epoch that are already done."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        return self.n // self.batch_size

    def __len__(self) -> int:
        """Micro batches from `first_step` to the end of the epoch."""
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        order = epoch_order(self.n, self.seed, epoch, self.repeats)
        micro = self.batch_size // self.accumulate
        for start in range(self.first_step * self.batch_size, self.steps * self.batch_size, micro):
            dealt = order[start : start + micro][self.rank :: self.world]
            yield [(epoch, index, copy) for index, copy in dealt.tolist()]
