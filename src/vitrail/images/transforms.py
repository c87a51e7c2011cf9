"""One image: cut its evaluation view, or draw a training view that a key alone decides.

Shapes
    b images, c channels, h and w pixels. Views are uint8 or uint16 and lie in memory as (h, w, c) behind their
    (c, h, w) shape: decoders write them so, and resizing, Pillow and collation are faster on them.

Differences from timm
    Resizing is torch's antialiased uint8 kernel where timm calls Pillow's: at most 2 levels apart. (Pillow 13 scales
    the columns of some tall images first, and is then up to 6 levels from both.)
    16 bits are resized as float32 and rounded.
    An image more than MAX_ASPECT times longer than its view needs is first cut to its middle.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from vitrail.config.sections import MIN_STD, too_large
from vitrail.errors import ConfigError, DataError, brief, closest
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.decoding import decode, read_image, to_pixels
from vitrail.images.fast_shear import quicken
from vitrail.images.pixels import Bits, Exif, PixelFormat, Pixels, UnreadableImage
from vitrail.models.family import MAX_CHANNELS, MAX_SIDE

MAX_ASPECT = 10  # a 20000x20 image resized whole to 224 rows would be 224,000 columns wide

AUTO_AUGMENT = re.compile(
    r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|tweights|t3aw?))*"
    r"|augmix(-(m\d+|w\d+|d\d+|a\d+(\.\d+)?|b[01]|mstd\d+(\.\d+)?))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)

MAX_COVER = 8192
"""Pixels of the short side, or of both, to which an image is scaled before its middle is cut out."""
MAX_NUMBER = 1e6
"""What no statistic of pixels is above; and nothing that is no number is below it."""
MEMORY_SHARE = 8
"""Into how many parts memory is divided, of which a batch of images may take one."""


def normalise(
    images: UInt[Tensor, "b c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b c h w"]:
    """Turn pixels into what the network reads, on the device they are on."""
    most = 255 if images.dtype == torch.uint8 else 65535
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.sub_(_channels(mean, most, pixels)).div_(_channels(std, most, pixels))


def _channels(values: tuple[float, ...], most: int, like: Tensor) -> Tensor:
    return torch.tensor([most * value for value in values], device=like.device).view(-1, 1, 1)


def fit_statistics(
    channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for so many channels: those given where they fit, for one their averages, else 0.5."""
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return (mean, std) if channels == len(mean) else ((0.5,) * channels, (0.5,) * channels)


def normalised_by(mean: Sequence[float], std: Sequence[float]) -> str:
    """Say what pixels are normalised by, values that are the same for all channels once."""
    alike = len({*mean}) == len({*std}) == 1
    shown = [", ".join(f"{value:.3g}" for value in (values[:1] if alike else values)) for values in (mean, std)]
    return f"pixels are normalised by mean {shown[0]} and std {shown[1]} of their range"


def _resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    # torch's uint8 kernel is fastest on (h, w, c) memory, and answers in kind, so nothing is repacked for Pillow or the
    # batch; it tells that memory by the strides, which image[None] does not keep
    pixels = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if tuple(image.shape[1:]) == size:
        return pixels[0]
    if image.dtype == torch.uint8:
        return interpolate(pixels, size, mode=interpolation, antialias=True)[0]
    resized = interpolate(pixels.to(torch.float32), size, mode=interpolation, antialias=True)[0]
    return resized.round_().clamp_(0, 65535).to(image.dtype)


def _center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (round((n - wanted) / 2) for n, wanted in zip(image.shape[1:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, tuple) and len(values) == count and all(map(_is_number, values))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image is brought to the network for evaluation; called on an image, it does all of it."""

    size: tuple[int, int]
    """Height and width in pixels."""
    crop: float = 0.9
    """The image is scaled until it just covers size / crop, rounded down; then the middle is cut out."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    exif: Exif = "ignore"
    channels: int = 3
    bits: Bits = 8

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(f"preprocess: {'; '.join(problems)}")

    def _problems(self) -> list[str]:
        """Say what is wrong, each as one clause; values may come from a file and be anything."""
        problems = []
        size, crop = self.size, self.crop
        if not (isinstance(size, tuple) and len(size) == 2 and all(map(_is_whole, size)) and min(size) > 0):
            problems.append(f"size is {brief(size)}; it must be a positive height and width")
        elif max(size) > MAX_SIDE:
            problems.append(f"size is {brief(size)}; it must be at most {MAX_SIDE} pixels a side")
        if not (_is_number(crop) and 0 < crop <= 1):
            problems.append(f"crop is {brief(crop)}; it must be above 0 and at most 1")
        elif not problems and max(size) / crop > MAX_COVER:
            problems.append(f"crop is {crop}; images of {max(size)} / {crop} pixels are too large, at most {MAX_COVER}")
        if self.interpolation not in ("bicubic", "bilinear"):
            problems.append(f"interpolation is {brief(self.interpolation)}; it must be 'bicubic' or 'bilinear'")
        if not (_is_whole(self.channels) and 1 <= self.channels <= MAX_CHANNELS):
            problems.append(f"channels is {brief(self.channels)}; it must be 1 to {MAX_CHANNELS}")
        elif not all(_are_numbers(values, self.channels) for values in (self.mean, self.std)) or min(self.std) <= 0:
            wanted = f"{self.channels} numbers, one a channel"
            given = f"mean is {brief(self.mean)} and std is {brief(self.std)}"
            problems.append(f"{given}; each must have {wanted}, std above 0")
        elif min(self.std) < MIN_STD:
            problems.append(f"std is {brief(self.std)}; it must be at least {MIN_STD:g}")
        else:
            problems += too_large(self.mean, self.std)
        if self.bits not in (8, 16) or not _is_whole(self.bits):
            problems.append(f"bits is {brief(self.bits)}; it must be 8 or 16")
        if self.exif not in ("ignore", "apply"):
            problems.append(f"exif is {brief(self.exif)}; it must be 'ignore' or 'apply'")
        return problems

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that this machine has no memory for: a file may ask for images of any size.

        Raises:
            ConfigError: One batch of them takes more than an eighth of it.
        """
        needed = 4 * batch_size * self.channels * math.prod(self.size)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory / MEMORY_SHARE:
            height, width = self.size
            raise ConfigError(
                f"preprocess.size is {height}x{width}, of which {batch_size} images take {needed / 1e9:.3g} GB and "
                f"this machine has {memory / 1e9:.3g}; lower the batch size, or give a smaller image_size"
            )

    @property
    def pixels(self) -> PixelFormat:
        """What images are read as."""
        return PixelFormat(self.channels, self.bits, self.exif)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild what `to_dict` returned."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"preprocess.{brief(name)[1:-1]}: unknown key{closest(name, known)}; known keys: {', '.join(known)}"
                )
        if "size" not in values:
            raise ConfigError("preprocess.size: missing; it is the height and width in pixels")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)

    def view(self, image: Pixels) -> UInt[Tensor, "c out_h out_w"]:
        """Scale the image and cut out its middle, as timm does."""
        height, width = image.shape[1:]
        cover = [math.floor(n / self.crop) for n in self.size]
        ratio = min(height / cover[0], width / cover[1])
        longest = [max(math.ceil(MAX_ASPECT * n * ratio), 1) for n in cover]
        if height > longest[0] or width > longest[1]:
            image = _center_crop(image, (min(height, longest[0]), min(width, longest[1])))
            height, width = image.shape[1:]
        if cover[0] == cover[1]:  # timm rounds down for squares (torchvision's Resize) and to nearest otherwise
            scaled = (int(cover[0] * height / min(height, width)), int(cover[0] * width / min(height, width)))
        else:
            scaled = (round(height / ratio), round(width / ratio))
        return _center_crop(_resize(image, scaled, self.interpolation), self.size)

    def __call__(self, image: str | Path | bytes | Image.Image | Tensor) -> Float[Tensor, "c out_h out_w"]:
        """Read, view and normalise one image: a file's path or bytes, a Pillow image, or pixels (c, h, w)."""
        return normalise(self.view(self._read(image))[None], self.mean, self.std)[0]

    def _read(self, image: str | Path | bytes | Image.Image | Tensor) -> Tensor:
        if isinstance(image, bytes):
            return decode(image, self.pixels)
        if isinstance(image, Image.Image):
            return to_pixels(image, self.pixels)
        if isinstance(image, Tensor):
            dtype, channels = self.pixels.dtype, self.channels
            if image.dtype != dtype or image.ndim != 3 or image.shape[0] != channels or image.numel() == 0:
                raise DataError(
                    f"image is {image.dtype} of shape {tuple(image.shape)}; give {dtype} of shape ({channels}, h, w)"
                )
            return image
        try:
            return decode(read_image(image), self.pixels)
        except OSError as error:
            raise UnreadableImage(f"{image}: {error.strerror}") from error
        except UnreadableImage as error:
            raise UnreadableImage(f"{image}: {error}") from error


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
    """Strength of brightness, contrast and saturation; as in timm, unused beside an auto_augment other than 3a."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """What the policy fills uncovered corners with."""

    def __post_init__(self) -> None:
        if self.auto_augment is not None and AUTO_AUGMENT.fullmatch(self.auto_augment) is None:
            forms = "rand-m9-mstd0.5-inc1, augmix-m3-w3, original-mstd0.5, originalr, v0, v0r, 3a"
            raise ConfigError(
                f"augment.auto_augment {self.auto_augment!r}: not a policy of timm; forms are {forms}, or null"
            )

    @cached_property
    def _policy(self) -> Callable[[Image.Image], Image.Image]:
        from timm.data.transforms_factory import create_transform  # takes seconds to import, and only training needs it

        # timm builds crop and flip, the policy, and normalisation; its colour jitter draws from torch's global state
        only_policy: dict[str, Any] = {"separate": True, "color_jitter": None, "auto_augment": self.auto_augment}
        parts: Any = create_transform(
            self.size, is_training=True, interpolation=self.interpolation, mean=self.mean, **only_policy
        )
        quicken(parts[1])
        return parts[1]

    def view(self, image: Pixels, key: int) -> UInt[Tensor, "c out_h out_w"]:
        """Draw the view that `key` stands for; the training process's random states are left as they were."""
        with _seeded(key, also_numpy=self.auto_augment is not None):
            top, left, height, width = self._box(image)
            interpolation = (
                random.choice(("bilinear", "bicubic")) if self.interpolation == "random" else self.interpolation
            )
            view = _resize(image[:, top : top + height, left : left + width], self.size, interpolation)
            if random.random() < self.hflip:
                view = view.flip(-1)
            if self.auto_augment is not None:
                augmented = self._policy(Image.fromarray(view.permute(1, 2, 0).numpy()))
                view = torch.from_numpy(np.array(augmented)).permute(2, 0, 1)
            if self.color_jitter is not None and (self.auto_augment is None or "3a" in self.auto_augment):
                view = _jitter(view, self.color_jitter)
        return view

    def _box(self, image: Tensor) -> tuple[int, int, int, int]:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        # in images of a few pixels a side may round to nothing
        return min(top, image.shape[1] - 1), min(left, image.shape[2] - 1), max(height, 1), max(width, 1)


def _jitter(view: Tensor, strength: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    # torchvision's ColorJitter draws from torch's global state, which belongs to the training process
    adjustments = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    random.shuffle(adjustments)
    for adjust in adjustments:
        view = adjust(view, random.uniform(max(0.0, 1 - strength), 1 + strength))
    return view


@contextmanager
def _seeded(key: int, *, also_numpy: bool) -> Iterator[None]:
    """Let `random`, and NumPy's global state, which timm draws from, follow from `key` for a while."""
    # saving and restoring takes longer than seeding, and in a loader's worker nobody else draws
    keep = get_worker_info() is None
    python_state = random.getstate() if keep else None
    numpy_state = np.random.get_state() if keep and also_numpy else None
    random.seed(key)
    if also_numpy:
        np.random.seed([key & 0xFFFFFFFF, key >> 32])
    try:
        yield
    finally:
        if python_state is not None:
            random.setstate(python_state)
        if numpy_state is not None:
            np.random.set_state(numpy_state)


def sample_key(seed: int, epoch: int, index: int, copy: int = 0) -> int:
    """Mix where a sample stands in a run into 63 bits, from which all its random draws follow.

    The same on every machine, version and process; 63 bits, so that an int64 tensor holds it.
    """
    digest = hashlib.blake2b(struct.pack("<4q", seed, epoch, index, copy), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
