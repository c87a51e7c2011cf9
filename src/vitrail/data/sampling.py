"""Which images a training step sees: a pure function of seed, epoch, step and process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ConfigError

SampleKey = tuple[int, int, int]
"""Epoch, index of the image, and which copy of it."""
MASK = 2**64 - 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def epoch_order(n: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch.

    Args:
        n: Images.
        seed: Of the run.
        epoch: From 0.
        repeats: Copies of each image in a row (repeated augmentation, Hoffer et al. 2020). The epoch is cut to n
            samples, so that it stays as long and sees n / repeats of the images.
    """
    images = np.argsort(_raw(n, seed, epoch), kind="stable")[: -(-n // repeats)]
    return _repeated(images, np.zeros_like(images), repeats)[:n]


def window_order(groups: NDArray[np.int64], window: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch in which images stored together come near each other.

    The groups are put in a random row, and each image then moves back by a random number of places below `window`. So
    each comes once, and at any time those that are read are of groups that lie within one window.

    Args:
        groups: That each image is stored in.
        window: Images.
        seed: Of the run.
        epoch: From 0.
        repeats: Copies of each image in a row, as for `epoch_order`.
    """
    stored, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    raw = _raw(len(stored) + len(groups), seed, epoch)
    row = np.argsort(raw[: len(stored)], kind="stable")
    starts = np.empty_like(counts)
    starts[row] = np.cumsum(counts[row]) - counts[row]
    moved = (raw[len(stored) :] >> np.uint64(32)) * np.uint64(window) >> np.uint64(32)
    images = np.lexsort((raw[len(stored) :], starts[group] + moved.astype(np.int64)))[: -(-len(groups) // repeats)]
    return _repeated(images, np.zeros_like(images), repeats)[: len(groups)]


def class_shares(counts: NDArray[np.int64], sampler: Literal["natural", "balanced", "sqrt"]) -> list[int]:
    """Return how often each class is drawn, as whole numbers in that proportion.

    Args:
        counts: Training images of each class.
        sampler: As `balance.sampler`.
    """
    if sampler == "balanced":
        return [1] * len(counts)
    if sampler == "sqrt":
        return [math.isqrt(count << 40) for count in counts.tolist()]  # a millionth off at most, the same everywhere
    return counts.tolist()


def class_order(
    labels: NDArray[np.int32], shares: Sequence[int], seed: int, epoch: int, repeats: int = 1
) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch in which classes are drawn by their shares.

    Each class has its images in an endless row, pass after pass, each pass in an order of its own, and an epoch takes
    the next piece of it. So over a run the images of a class are drawn equally often, where independent draws would
    show one twice as often as another; and how often a class is drawn in an epoch is its share rounded down or up
    (systematic sampling, Madow 1949). What is left to chance is which way it is rounded, and the order. A piece begins
    where that of the epoch before ends but for this rounding, so each epoch follows from its number alone.

    Args:
        labels: Of each image; every class has some.
        shares: Of each class, see `class_shares`.
        seed: Of the run.
        epoch: From 0.
        repeats: Copies of each draw in a row, as for `epoch_order`.
    """
    counts = np.bincount(labels, minlength=len(shares))
    draws, total = -(-len(labels) // repeats), sum(shares)
    raw = _raw(draws + 1, seed, epoch)
    # Python's whole numbers: exact for any number of images
    offset = int(raw[-1]) * total >> 64
    quotas = np.diff([0, *((draws * below + offset) // total for below in accumulate(shares))])
    begins = np.array([epoch * draws * share // total for share in shares])
    first = begins // counts
    passes = -(-(begins + quotas) // counts) - first
    # the images of every pass that the epoch touches, class by class
    pass_class = np.repeat(np.arange(len(shares)), passes)
    pass_key = _scrambled(_ranges(first, passes).astype(np.uint64) * GOLDEN + np.uint64(seed & MASK))
    lengths = counts[pass_class]
    images = np.argsort(labels, kind="stable")[_ranges((np.cumsum(counts) - counts)[pass_class], lengths)]
    image_key = _scrambled(np.repeat(pass_key, lengths) + images.astype(np.uint64) * GOLDEN)
    images = images[np.lexsort((image_key, np.repeat(np.arange(len(lengths)), lengths)))]
    # the piece of each class
    skipped = begins - first * counts
    block = np.cumsum(passes * counts) - passes * counts
    taken = images[_ranges(block + skipped, quotas)]
    copies = _ranges(skipped, quotas) // np.repeat(counts, quotas)  # an image's next draw is in the next pass
    order = np.argsort(raw[:-1], kind="stable")
    return _repeated(taken[order], copies[order], repeats)[: len(labels)]


def _raw(n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    # Philox's raw stream is fixed for ever, NumPy's permutation is not
    return np.random.Philox(key=np.array([seed & MASK, epoch], dtype=np.uint64)).random_raw(n)


def _scrambled(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what SplitMix64 makes of its states (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each beginning on, one row after the other."""
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())


def _repeated(images: NDArray[np.int64], copies: NDArray[np.int64], repeats: int) -> NDArray[np.int64]:
    """Return (index, copy) with each image `repeats` times in a row, as copies of which no other draw of it has one."""
    numbers = np.repeat(copies * repeats, repeats) + np.tile(np.arange(repeats), len(images))
    return np.stack([np.repeat(images, repeats), numbers], axis=1)


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
        epoch_samples: Samples that an epoch takes at most, the first of its order; None takes all.
        labels: Of each image, where classes are drawn by `shares`.
        shares: Of each class, see `class_order`; None sees each image once an epoch.
        groups: That images are stored in, where they are to be read in windows, see `window_order`.
        window: Images.
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
        epoch_samples: int | None = None,
        labels: NDArray[np.int32] | None = None,
        shares: Sequence[int] | None = None,
        groups: NDArray[np.int64] | None = None,
        window: int = 1,
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
        if epoch_samples is not None and not batch_size <= epoch_samples <= n:
            raise ConfigError(
                f"train.epoch_images is {epoch_samples}; it must be from train.batch_size {batch_size} to the {n} "
                "training images"
            )
        self.n, self.batch_size, self.seed, self.repeats = n, batch_size, seed, repeats
        self.epoch_samples = n if epoch_samples is None else epoch_samples
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.labels, self.shares, self.groups, self.window = labels, shares, groups, window
        self.epoch = 0
        self.first_step = 0
        """Steps of the epoch that are already done."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        return self.epoch_samples // self.batch_size

    def __len__(self) -> int:
        """Micro batches from `first_step` to the end of the epoch."""
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        if self.groups is not None:
            order = window_order(self.groups, self.window, self.seed, epoch, self.repeats)
        elif self.labels is None or self.shares is None:
            order = epoch_order(self.n, self.seed, epoch, self.repeats)
        else:
            order = class_order(self.labels, self.shares, self.seed, epoch, self.repeats)
        micro = self.batch_size // self.accumulate
        for start in range(self.first_step * self.batch_size, self.steps * self.batch_size, micro):
            dealt = order[start : start + micro][self.rank :: self.world]
            yield [(epoch, index, copy) for index, copy in dealt.tolist()]
