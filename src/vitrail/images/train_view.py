"""Training augmentation of one image: random resized crop, flip, and timm's AutoAugment policies or colour jitter.

Every draw follows from a seed of the sample (`sample_key`), whichever process, worker or machine
draws it.
"""

from __future__ import annotations

import hashlib
import random
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt
from torch import Tensor
from torch.utils.data import get_worker_info

from vitrail.errors import ConfigError
from vitrail.imagenet import IMAGENET_MEAN
from vitrail.images.fast_policy import (
    ArrayPolicy,
    Drawn,
    RecordedPolicy,
    record_policy,
    speed_up_policy,
    split_key,
)
from vitrail.images.pixels import Pixels
from vitrail.images.preprocess import resize_pixels

AUTO_AUGMENT = re.compile(
    r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|tweights|t3aw?))*"
    r"|augmix(-(m\d+|w\d+|d\d+|a\d+(\.\d+)?|b[01]|mstd\d+(\.\d+)?))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)
"""Names of timm's policies with their parameters."""


DEVICE_POLICY = re.compile(r"rand(-(?!t3a)[a-z0-9.]+)*")
"""Policies that a device computes for whole batches: timm's RandAugment, without the sets 3a and
3aw, which blur."""

Place = tuple[float, float, float, float, float]
"""Left, top, right and bottom of a view as shares of its image, and 1 where it is mirrored, else 0."""
WHOLE: Place = (0.0, 0.0, 1.0, 1.0, 0.0)
"""The place of a view that is the image itself."""


@dataclass(frozen=True, kw_only=True)
class TrainView:
    """A random view of a training image: crop and resize, mirror, then timm's policy or colour jitter."""

    size: tuple[int, int]
    """Height and width in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the crop."""
    interpolation: Literal["random", "bicubic", "bilinear"] = "random"
    """Random draws bicubic or bilinear for each image."""
    hflip: float = 0.5
    """Probability of mirroring left and right."""
    auto_augment: str | None = None
    """A policy in timm's notation, such as rand-m9-mstd0.5-inc1."""
    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation; as in timm, unused beside an auto_augment
    other than 3a."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, from 0 to 1: the colour that the policy fills uncovered corners
    with."""
    on_device: bool = False
    """Whether the policy is left to `device_augment.DeviceAugment`, which computes it for whole
    batches; it must be one of DEVICE_POLICY then."""

    def __post_init__(self) -> None:
        if self.auto_augment is not None and AUTO_AUGMENT.fullmatch(self.auto_augment) is None:
            forms = "rand-m9-mstd0.5-inc1, augmix-m3-w3, original-mstd0.5, originalr, v0, v0r, 3a"
            raise ConfigError(
                f"augment.auto_augment {self.auto_augment!r}: not a policy of timm; forms are "
                f"{forms}, or null"
            )
        if self.on_device and not DEVICE_POLICY.fullmatch(self.auto_augment or "rand"):
            raise ConfigError(
                f"augment.device=true computes RandAugment alone, and augment.auto_augment is "
                f"{self.auto_augment!r}; take one such as rand-m9-mstd0.5-inc1 (the sets t3a and "
                "t3aw blur, which is left to the loader), or set augment.device=false"
            )

    def describe(self) -> dict[str, Any]:
        """Return all that decides a view but its seed; what has no effect beside the rest is left out."""
        about = asdict(self)
        if not self.on_device:
            del about["on_device"]
        if self.auto_augment is None:
            del about["mean"]
        elif not self._jitters:
            del about["color_jitter"]
        return about

    @property
    def _jitters(self) -> bool:
        """Whether color_jitter counts beside the policy."""
        return self.auto_augment is None or "3a" in self.auto_augment

    @cached_property
    def _policy(self) -> ArrayPolicy:
        return speed_up_policy(self._build_policy())

    @cached_property
    def _recorded(self) -> RecordedPolicy:
        return record_policy(self._build_policy())

    def _build_policy(self) -> Any:
        # takes seconds to import, and only training needs it
        from timm.data.transforms_factory import create_transform

        # timm builds crop and flip, the policy, and normalisation; its colour jitter draws from
        # torch's global state
        only_policy: dict[str, Any] = {
            "separate": True,
            "color_jitter": None,
            "auto_augment": self.auto_augment,
        }
        parts: Any = create_transform(
            self.size,
            is_training=True,
            interpolation=self.interpolation,
            mean=self.mean,
            **only_policy,
        )
        return parts[1]

    @property
    def fill(self) -> tuple[int, int, int]:
        """Colour that the policy fills uncovered corners with, as timm rounds it."""
        red, green, blue = (min(255, round(255 * value)) for value in self.mean)
        return red, green, blue

    def draw_operations(self, keys: Iterable[int]) -> list[tuple[Drawn, ...]]:
        """Draw the operations of the policy for the seed of each view; `random` stays as it was."""
        recorded = self._recorded
        with _seeded(0, also_numpy=False):
            return [recorded.draw(key) for key in keys]

    def view(self, image: Pixels, key: int) -> UInt[Tensor, "c out_h out_w"]:
        """Draw the view that follows from the seed `key`; the random states of a training process stay as they were."""
        return self.draw(image, key)[0]

    def draw(self, image: Pixels, key: int) -> tuple[UInt[Tensor, "c out_h out_w"], Place]:
        """Draw the same view, and say where in the image it was cut out before the policy varied it."""
        has_policy = self.auto_augment is not None and not self.on_device
        also_numpy = has_policy and self._policy.draws_from_numpy
        with _seeded(key, also_numpy=also_numpy):
            top, left, height, width = self._box(image)
            interpolation: str = self.interpolation
            if interpolation == "random":
                interpolation = random.choice(("bilinear", "bicubic"))
            view = resize_pixels(
                image[:, top : top + height, left : left + width], self.size, interpolation
            )
            is_mirrored = random.random() < self.hflip
            if is_mirrored:
                view = _mirror(view)
            if has_policy:
                # a part of an image that has the view's size lies in memory with gaps
                picture = np.ascontiguousarray(view.permute(1, 2, 0).numpy())
                view = torch.from_numpy(self._policy(picture, key)).permute(2, 0, 1)
            if self.color_jitter is not None and self._jitters:
                view = _jitter(view, self.color_jitter)
        rows, columns = image.shape[1:]
        right, bottom = (left + width) / columns, (top + height) / rows
        return view, (left / columns, top / rows, right, bottom, float(is_mirrored))

    def _box(self, image: Tensor) -> tuple[int, int, int, int]:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            image, self.scale, self.ratio
        )
        # in images of a few pixels a side may round to nothing
        return (
            min(top, image.shape[1] - 1),
            min(left, image.shape[2] - 1),
            max(height, 1),
            max(width, 1),
        )


def _mirror(view: Tensor) -> Tensor:
    """Return a view turned left to right."""
    if view.dtype == torch.uint16:  # which PyTorch 2.13 cannot turn
        return view.view(torch.int16).flip(-1).view(torch.uint16)
    return view.flip(-1)


def _jitter(view: Tensor, strength: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    # torchvision's ColorJitter draws from torch's global state, which belongs to the training
    # process
    adjustments = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    ]
    random.shuffle(adjustments)
    for adjust in adjustments:
        view = adjust(view, random.uniform(max(0.0, 1 - strength), 1 + strength))
    return view


@contextmanager
def _seeded(key: int, *, also_numpy: bool) -> Iterator[None]:
    """Seed `random`, and NumPy's global state, which timm draws from, with `key` for a while."""
    # saving and restoring takes longer than seeding, and in a loader's worker nobody else draws
    keep = get_worker_info() is None
    python_state = random.getstate() if keep else None
    numpy_state = np.random.get_state() if keep and also_numpy else None
    random.seed(key)
    if also_numpy:
        np.random.seed(split_key(key))
    try:
        yield
    finally:
        if python_state is not None:
            random.setstate(python_state)
        if numpy_state is not None:
            np.random.set_state(numpy_state)


def sample_key(seed: int, epoch: int, index: int, copy: int = 0) -> int:
    """Return the seed of a sample's random draws, hashed from the run's seed, the epoch, the image and its copy.

    It is equal on every machine, version and process, and has 63 bits, so that an int64 tensor
    holds it.
    """
    digest = hashlib.blake2b(struct.pack("<4q", seed, epoch, index, copy), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
