"""Sampling: which images each training step sees on each rank, as a pure function of seed, epoch, step and rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ConfigError

SampleKey = tuple[int, int, int]
"""Epoch, index of the image, and which copy of it."""
MASK = 2**64 - 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffle_epoch(n: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch, in random order.

    Args:
        n: Number of images.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        repeats: Copies of each image in a row (repeated augmentation, Hoffer et al. 2020). The
            epoch is cut to n samples, so that it stays as long and sees n / repeats of the images.
    """
    images = np.argsort(_random_numbers(n, seed, epoch), kind="stable")[: -(-n // repeats)]
    return _repeat(images, np.zeros_like(images), repeats)[:n]


def shuffle_in_windows(
    groups: NDArray[np.int64], window: int, seed: int, epoch: int, repeats: int = 1
) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch in which images stored together come near each other.

    The groups are put in a random row, and each image then moves back by a random number of places
    below `window`. So each comes once, and at any time those that are read are of groups that lie
    within one window.

    Args:
        groups: The group that each image is stored in.
        window: Number of images among which the order is random.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        repeats: Copies of each image in a row, as for `shuffle_epoch`.
    """
    n = len(groups)
    stored, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    numbers = _random_numbers(len(stored) + n, seed, epoch)
    of_groups, of_images = numbers[: len(stored)], numbers[len(stored) :]
    # the groups in a random row: where each begins
    row = np.argsort(of_groups, kind="stable")
    starts = np.empty_like(counts)
    starts[row] = np.cumsum(counts[row]) - counts[row]
    # the high half of each number, scaled to the window
    moved = (of_images >> np.uint64(32)) * np.uint64(window) >> np.uint64(32)
    places = starts[group] + moved.astype(np.int64)
    images = np.lexsort((of_images, places))[: -(-n // repeats)]
    return _repeat(images, np.zeros_like(images), repeats)[:n]


def compute_class_shares(
    counts: NDArray[np.int64], sampler: Literal["natural", "balanced", "sqrt"]
) -> list[int]:
    """Return how often each class is drawn, as whole numbers in that proportion.

    Args:
        counts: Training images of each class.
        sampler: Setting `balance.sampler`.
    """
    if sampler == "balanced":
        return [1] * len(counts)
    if sampler == "sqrt":
        # whole numbers, a millionth off at most, are equal on every machine
        return [math.isqrt(count << 40) for count in counts.tolist()]
    return counts.tolist()


def draw_by_class(
    labels: NDArray[np.int32], shares: Sequence[int], seed: int, epoch: int, repeats: int = 1
) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch in which classes are drawn by their shares.

    Each class has its images in an endless row, pass after pass, each pass in an order of its own,
    and an epoch takes the next piece of it. So over a run the images of a class are drawn equally
    often, where independent draws would show one twice as often as another; and how often a class
    is drawn in an epoch is its share rounded down or up (systematic sampling, Madow 1949). What is
    left to chance is which way it is rounded, and the order. A piece begins where that of the epoch
    before ends but for this rounding, so each epoch follows from its number alone.

    Args:
        labels: Label of each image; every class has some.
        shares: Share of each class, see `compute_class_shares`.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        repeats: Copies of each draw in a row, as for `shuffle_epoch`.
    """
    counts = np.bincount(labels, minlength=len(shares))
    draws = -(-len(labels) // repeats)
    numbers = _random_numbers(draws + 1, seed, epoch)
    begins, quotas = _take_pieces(shares, draws, epoch, int(numbers[-1]))
    first = begins // counts
    passes = -(-(begins + quotas) // counts) - first

    # the images of every pass that the epoch touches, class by class, each pass in an order of its
    # own
    pass_class = np.repeat(np.arange(len(shares)), passes)
    pass_key = _scramble(
        _count_on(first, passes).astype(np.uint64) * GOLDEN + np.uint64(seed & MASK)
    )
    lengths = counts[pass_class]
    class_begins = np.cumsum(counts) - counts
    images = np.argsort(labels, kind="stable")[_count_on(class_begins[pass_class], lengths)]
    image_key = _scramble(np.repeat(pass_key, lengths) + images.astype(np.uint64) * GOLDEN)
    images = images[np.lexsort((image_key, np.repeat(np.arange(len(lengths)), lengths)))]

    # the piece of each class, and of which pass each image is: an image's next draw is in the next
    # pass
    skipped = begins - first * counts
    block = np.cumsum(passes * counts) - passes * counts
    taken = images[_count_on(block + skipped, quotas)]
    copies = _count_on(skipped, quotas) // np.repeat(counts, quotas)

    order = np.argsort(numbers[:-1], kind="stable")
    return _repeat(taken[order], copies[order], repeats)[: len(labels)]


def _take_pieces(
    shares: Sequence[int], draws: int, epoch: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the piece of each class begins in its endless row, and its length.

    Args:
        shares: Share of each class.
        draws: Images that are drawn in an epoch.
        epoch: Number of the epoch.
        number: 64 random bits, which decide on the rounding.
    """
    # Python's whole numbers are exact for any number of images
    total = sum(shares)
    offset = number * total >> 64
    ends = [(draws * below + offset) // total for below in accumulate(shares)]
    begins = [epoch * draws * share // total for share in shares]
    return np.array(begins), np.diff([0, *ends])


def _random_numbers(n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    # Philox's raw stream is fixed for ever, NumPy's permutation is not
    return np.random.Philox(key=np.array([seed & MASK, epoch], dtype=np.uint64)).random_raw(n)


def _scramble(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash numbers by the output function of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _count_on(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the whole numbers from each beginning on, as many as its length, one row after the other."""
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())


def _repeat(
    images: NDArray[np.int64], copies: NDArray[np.int64], repeats: int
) -> NDArray[np.int64]:
    """Return (index, copy) with each image `repeats` times in a row, each time with a copy number of its own."""
    numbers = np.repeat(copies * repeats, repeats) + np.tile(np.arange(repeats), len(images))
    return np.stack([np.repeat(images, repeats), numbers], axis=1)


class EpochOrder(Protocol):
    """The samples of each epoch, in order, as a function of the epoch's number."""

    @property
    def n(self) -> int:
        """Number of images, and of samples in an epoch."""
        ...

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Return (index, copy) of each of the n samples of an epoch."""
        ...


@dataclass(frozen=True)
class Shuffle:
    """All images once an epoch, in random order; see `shuffle_epoch`."""

    n: int
    """Number of images, and of samples in an epoch."""
    seed: int
    """Seed of the run."""
    repeats: int = 1
    """Copies of each image in a row."""

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Return (index, copy) of each of the n samples of an epoch."""
        return shuffle_epoch(self.n, self.seed, epoch, self.repeats)


@dataclass(frozen=True, eq=False)
class WindowShuffle:
    """All images once an epoch, those that are stored together near each other; see `shuffle_in_windows`."""

    groups: NDArray[np.int64]
    """The group that each image is stored in."""
    window: int
    """Number of images among which the order is random."""
    seed: int
    """Seed of the run."""
    repeats: int = 1
    """Copies of each image in a row."""

    @property
    def n(self) -> int:
        """Number of images, and of samples in an epoch."""
        return len(self.groups)

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Return (index, copy) of each of the n samples of an epoch."""
        return shuffle_in_windows(self.groups, self.window, self.seed, epoch, self.repeats)


@dataclass(frozen=True, eq=False)
class ClassDraw:
    """Images drawn by the shares of their classes; see `draw_by_class`."""

    labels: NDArray[np.int32]
    """Label of each image."""
    shares: Sequence[int]
    """Share of each class, see `compute_class_shares`."""
    seed: int
    """Seed of the run."""
    repeats: int = 1
    """Copies of each draw in a row."""

    @property
    def n(self) -> int:
        """Number of images, and of samples in an epoch."""
        return len(self.labels)

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Return (index, copy) of each of the n samples of an epoch."""
        return draw_by_class(self.labels, self.shares, self.seed, epoch, self.repeats)


class BatchSampler:
    """The training samples of one rank, batch by batch; a pure function of its settings, `epoch` and `first_step`.

    The global batch of a step is a slice of the epoch's order, whatever the number of ranks. It is
    cut into `accumulate` micro-batches, and each of those is dealt out to the ranks in turn, so
    that copies of an image are separated. Samples at the end of an epoch that fill no global batch
    are left out; the next epoch's order is another.

    Args:
        order: The samples of each epoch.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches.
        rank: This rank.
        world: Number of ranks.
        accumulate: Micro-batches of a step.
        epoch_samples: Samples that an epoch takes at most, the first of its order; None takes all.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        epoch_samples: int | None = None,
    ) -> None:
        _check_batch_size(order.n, batch_size, world, accumulate)
        if epoch_samples is not None and not batch_size <= epoch_samples <= order.n:
            raise ConfigError(
                f"train.epoch_images is {epoch_samples}; it must be from train.batch_size "
                f"{batch_size} to the {order.n} training images"
            )
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self.epoch_samples = order.n if epoch_samples is None else epoch_samples
        self.epoch = 0
        self.first_step = 0
        """Steps of the epoch that are already done."""

    @property
    def n(self) -> int:
        """Number of images."""
        return self.order.n

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        return self.epoch_samples // self.batch_size

    def __len__(self) -> int:
        """Micro-batches from `first_step` to the end of the epoch."""
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        samples = self.order.draw(epoch)
        micro_batch = self.batch_size // self.accumulate
        begin = self.first_step * self.batch_size
        end = self.steps * self.batch_size
        for start in range(begin, end, micro_batch):
            dealt = samples[start : start + micro_batch][self.rank :: self.world]
            yield [(epoch, index, copy) for index, copy in dealt.tolist()]


def _check_batch_size(n: int, batch_size: int, world: int, accumulate: int) -> None:
    """Refuse a global batch that cannot be divided over the ranks and micro-batches, or exceeds the images."""
    parts = world * accumulate
    if batch_size < 1 or batch_size % parts:
        below = batch_size // parts * parts
        above = -(-max(batch_size, 1) // parts) * parts
        nearest = " or ".join(str(size) for size in sorted({below, above} - {0}))
        raise ConfigError(
            f"train.batch_size {batch_size} cannot be split over {world} processes x {accumulate} "
            f"micro batches; nearest: {nearest}"
        )
    if n < batch_size:
        too_many = f"train.batch_size {batch_size} is more than the {n} training images"
        if n < parts:
            raise ConfigError(f"{too_many}, too few for {parts} parts")
        raise ConfigError(f"{too_many}; set train.batch_size to at most {n // parts * parts}")
