"""Preprocessing for evaluation: an image comes to the network's size, equal to timm's.

Shapes
    b images, c channels, h and w pixels. Views are uint8 or uint16 and lie in memory as (h, w, c) behind their
    (c, h, w) shape: decoders write them so, and resizing, Pillow and collation are faster on them.

Differences from timm
    Resizing is torch's antialiased uint8 kernel where timm calls Pillow's: at most 2 levels apart. (Pillow 13 scales
    the columns of some tall images first, and is then up to 6 levels from both.)
    16 bits are resized as float32 and rounded.
    Where the centre is cropped, an image more than MAX_ASPECT times longer than its view needs is
    first cut to its middle. Squash and letterbox keep all of it, as timm's do with a crop_pct of 1;
    a letterbox leaves one pixel of a short side at least, where timm's rounds it to none and fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, UInt
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.choices import Resize
from vitrail.config.sections import MIN_STD, find_wrong_scale
from vitrail.devices import count_memory
from vitrail.errors import ConfigError, DataError, shorten, suggest
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.decoding import decode, read_image, to_pixels
from vitrail.images.pixels import Bits, Exif, PixelFormat, Pixels, UnreadableImage
from vitrail.models.family import MAX_CHANNELS, MAX_SIDE

MAX_ASPECT = 10
"""Longest side of an image, in multiples of the side its view needs, that is resized whole before
its centre is cropped. A 20000x20 image resized whole to 224 rows would be 224,000 columns wide."""
MAX_COVER = 8192
"""Most pixels of the side to which an image is scaled before its centre is cropped."""
MAX_NUMBER = 1e6
"""Largest absolute value of a statistic of pixels; NaN is not below it."""
MEMORY_SHARE = 8
"""Number of parts that memory is divided into, of which a batch of images may take one."""


def normalise(
    images: UInt[Tensor, "b c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b c h w"]:
    """Turn pixels into what the network reads, on the device they are on."""
    most = 255 if images.dtype == torch.uint8 else 65535
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.sub_(_channels(mean, most, pixels)).div_(_channels(std, most, pixels))


def _channels(values: tuple[float, ...], most: int, like: Tensor) -> Tensor:
    return torch.tensor([most * value for value in values], device=like.device).view(-1, 1, 1)


def denormalise(
    images: Float[Tensor, "b c h w"], preprocess: Preprocess
) -> UInt[Tensor, "b c h w"]:
    """Turn what the network reads back into pixels, as far as they go."""
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    most = 2**preprocess.bits - 1
    levels = ((images * std + mean) * most).round().clamp(0, most)
    return levels.to(preprocess.pixels.dtype)


def fit_statistics(
    channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for so many channels: those given where they fit, for one their averages, else 0.5."""
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if channels == len(mean):
        return mean, std
    half = (0.5,) * channels
    return half, half


def describe_normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """Describe the mean and std of a normalisation; values equal for all channels are shown once."""
    if len({*mean}) == 1 and len({*std}) == 1:
        mean, std = mean[:1], std[:1]
    return f"pixels are normalised by mean {_show(mean)} and std {_show(std)} of their range"


def _show(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def resize_pixels(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize one image (c, h, w) with antialiasing; the result keeps the dtype, and lies in memory as (h, w, c)."""
    # torch's uint8 kernel is fastest on (h, w, c) memory, and answers in kind, so nothing is
    # repacked for Pillow or
    # the batch; it tells that memory by the strides, which image[None] does not keep
    pixels = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if tuple(image.shape[1:]) == size:
        return pixels[0]
    if image.dtype == torch.uint8:
        return interpolate(pixels, size, mode=interpolation, antialias=True)[0]
    resized = interpolate(pixels.to(torch.float32), size, mode=interpolation, antialias=True)[0]
    return resized.round_().clamp_(0, 65535).to(image.dtype)


def _center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    top = round((image.shape[1] - height) / 2)
    left = round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


def _frame(image: Tensor, size: tuple[int, int], colour: Sequence[int]) -> Tensor:
    """Put an image into the middle of a canvas of one colour; it lies in memory as (h, w, c)."""
    _, height, width = image.shape
    top = (size[0] - height) // 2
    left = (size[1] - width) // 2
    canvas = torch.tensor(colour, dtype=image.dtype).expand(*size, -1).clone().permute(2, 0, 1)
    canvas[:, top : top + height, left : left + width] = image
    return canvas


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    )


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, tuple) and len(values) == count and all(map(_is_number, values))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The evaluation preprocessing of a model; called on an image, it reads, resizes, crops and normalises it."""

    size: tuple[int, int]
    """Height and width in pixels."""
    crop: float = 0.9
    """The image is scaled until it just covers size / crop, rounded down; then the middle is cut
    out. It counts where `resize` is crop."""
    resize: Resize = "crop"
    """How an image that is not of the view's proportions is fitted: crop cuts its middle out,
    squash resizes both sides to the view's, letterbox resizes all of it into the view and fills the
    rest with the mean (timm's crop_mode center, squash and border)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of the resizing, always antialiased."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels from 0 to 1."""
    exif: Exif = "ignore"
    """Whether EXIF orientation turns the image."""
    channels: int = 3
    """Channels of an image as the model reads it."""
    bits: Bits = 8
    """Bits of a channel when the image is decoded."""

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(f"preprocess: {'; '.join(problems)}")

    def _problems(self) -> list[str]:
        """Return what is wrong, each as one clause; values may come from a file and be anything."""
        problems = self._problems_of_size()
        if self.resize not in get_args(Resize):
            problems.append(
                f"resize is {shorten(self.resize)}; it must be 'crop', 'squash' or 'letterbox'"
            )
        if self.interpolation not in ("bicubic", "bilinear"):
            problems.append(
                f"interpolation is {shorten(self.interpolation)}; it must be 'bicubic' or "
                "'bilinear'"
            )
        problems += self._problems_of_statistics()
        if self.bits not in (8, 16) or not _is_whole(self.bits):
            problems.append(f"bits is {shorten(self.bits)}; it must be 8 or 16")
        if self.exif not in ("ignore", "apply"):
            problems.append(f"exif is {shorten(self.exif)}; it must be 'ignore' or 'apply'")
        return problems

    def _problems_of_size(self) -> list[str]:
        problems = []
        size, crop = self.size, self.crop
        if not (
            isinstance(size, tuple)
            and len(size) == 2
            and all(map(_is_whole, size))
            and min(size) > 0
        ):
            problems.append(f"size is {shorten(size)}; it must be a positive height and width")
        elif max(size) > MAX_SIDE:
            problems.append(f"size is {shorten(size)}; it must be at most {MAX_SIDE} pixels a side")
        if not (_is_number(crop) and 0 < crop <= 1):
            problems.append(f"crop is {shorten(crop)}; it must be above 0 and at most 1")
        elif not problems and max(size) / crop > MAX_COVER:
            problems.append(
                f"crop is {crop}; images of {max(size)} / {crop} pixels are too large, at most "
                f"{MAX_COVER}"
            )
        return problems

    def _problems_of_statistics(self) -> list[str]:
        if not (_is_whole(self.channels) and 1 <= self.channels <= MAX_CHANNELS):
            return [f"channels is {shorten(self.channels)}; it must be 1 to {MAX_CHANNELS}"]
        if (
            not all(_are_numbers(values, self.channels) for values in (self.mean, self.std))
            or min(self.std) <= 0
        ):
            wanted = f"{self.channels} numbers, one a channel"
            given = f"mean is {shorten(self.mean)} and std is {shorten(self.std)}"
            return [f"{given}; each must have {wanted}, std above 0"]
        if min(self.std) < MIN_STD:
            return [f"std is {shorten(self.std)}; it must be at least {MIN_STD:g}"]
        return list(find_wrong_scale(self.mean, self.std))

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that this machine has no memory for: a file may ask for images of any size.

        Raises:
            ConfigError: One batch of them takes more than an eighth of it.
        """
        needed = 4 * batch_size * self.channels * math.prod(self.size)
        memory = count_memory()
        if needed > memory / MEMORY_SHARE:
            height, width = self.size
            raise ConfigError(
                f"preprocess.size is {height}x{width}, of which {batch_size} images take "
                f"{needed / 1e9:.3g} GB and there are {memory / 1e9:.3g} here; lower the batch "
                "size, or give a smaller image_size"
            )

    @property
    def pixels(self) -> PixelFormat:
        """The pixel format that images are decoded to."""
        return PixelFormat(self.channels, self.bits, self.exif)

    @property
    def cover(self) -> tuple[int, int]:
        """Height and width that an image of the proportions of its view is scaled to."""
        height, width = self.size
        return math.floor(height / self.crop), math.floor(width / self.crop)

    @property
    def fill(self) -> tuple[int, ...]:
        """Level of each channel around an image in a letterbox: the mean, rounded as in timm."""
        most = 2**self.bits - 1
        return tuple(min(max(round(most * value), 0), most) for value in self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild what `to_dict` returned."""
        known = [field.name for field in fields(cls)]
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(
                    f"preprocess.{shorten(name)[1:-1]}: unknown key{suggest(name, known)}; known "
                    f"keys: {', '.join(known)}"
                )
            arguments[name] = tuple(value) if isinstance(value, list) else value
        if "size" not in values:
            raise ConfigError("preprocess.size: missing; it is the height and width in pixels")
        return cls(**arguments)

    def view(self, image: Pixels) -> UInt[Tensor, "c out_h out_w"]:
        """Bring the image to the view's size, as `resize` says."""
        if self.resize == "squash":
            return resize_pixels(image, self.size, self.interpolation)
        height, width = image.shape[1:]
        if self.resize == "letterbox":
            ratio = max(height / self.size[0], width / self.size[1])
            scaled = (max(round(height / ratio), 1), max(round(width / ratio), 1))
            return _frame(resize_pixels(image, scaled, self.interpolation), self.size, self.fill)

        cover_height, cover_width = self.cover
        ratio = min(height / cover_height, width / cover_width)
        # of a very long image, only the middle is resized
        most_height = max(math.ceil(MAX_ASPECT * cover_height * ratio), 1)
        most_width = max(math.ceil(MAX_ASPECT * cover_width * ratio), 1)
        if height > most_height or width > most_width:
            image = _center_crop(image, (min(height, most_height), min(width, most_width)))
            height, width = image.shape[1:]
        # timm rounds down for squares (torchvision's Resize) and to nearest otherwise
        if cover_height == cover_width:
            short = min(height, width)
            scaled = (int(cover_height * height / short), int(cover_width * width / short))
        else:
            scaled = (round(height / ratio), round(width / ratio))
        return _center_crop(resize_pixels(image, scaled, self.interpolation), self.size)

    def __call__(
        self, image: str | Path | bytes | Image.Image | Tensor
    ) -> Float[Tensor, "c out_h out_w"]:
        """Read, resize, crop and normalise one image: a file's path or bytes, a Pillow image, or pixels (c, h, w)."""
        return normalise(self.view(self._read(image))[None], self.mean, self.std)[0]

    def _read(self, image: str | Path | bytes | Image.Image | Tensor) -> Tensor:
        if isinstance(image, bytes):
            return decode(image, self.pixels)
        if isinstance(image, Image.Image):
            return to_pixels(image, self.pixels)
        if isinstance(image, Tensor):
            self._check_pixels(image)
            return image
        try:
            return decode(read_image(image), self.pixels)
        except OSError as error:
            raise UnreadableImage(f"{image}: {error.strerror}") from error
        except UnreadableImage as error:
            raise UnreadableImage(f"{image}: {error}") from error

    def _check_pixels(self, image: Tensor) -> None:
        dtype, channels = self.pixels.dtype, self.channels
        has_shape = image.ndim == 3 and image.shape[0] == channels and image.numel() > 0
        if image.dtype != dtype or not has_shape:
            raise DataError(
                f"image is {image.dtype} of shape {tuple(image.shape)}; give {dtype} of shape "
                f"({channels}, h, w)"
            )
