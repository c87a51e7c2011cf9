"""The pixel format that images are converted to (channels, bit depth), and the conversion rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import DataError

Exif = Literal["ignore", "apply"]
Bits = Literal[8, 16]
Pixels = UInt[Tensor, "c h w"]

MAX_PIXELS = 178_956_970
"""Most pixels of an image; beyond, Pillow too refuses it as a decompression bomb."""
MAX_VALUES = 4 * MAX_PIXELS
"""Most values of an image, in all channels together."""
AS_INTEGERS = "save it as uint8 or uint16, in the range of that type"
"""Advice of a refusal, for numbers that have no known range."""


class UnreadableImage(DataError):
    """An image that cannot be decoded; the text is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Channels and bit depth that every image is converted to."""

    channels: int = 3
    """Number of channels: 1 is gray, 3 is RGB, others are taken as they are stored."""
    bits: Bits = 8
    """Bits of a channel: pixels are uint8 or uint16."""
    exif: Exif = "ignore"
    """Whether EXIF orientation turns the image. Published accuracies were measured without. (A TIFF
    is turned either way: there, orientation is part of the format.)"""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels."""
        return torch.uint8 if self.bits == 8 else torch.uint16

    @property
    def is_picture(self) -> bool:
        """Whether it is RGB of 8 bits, which screens show and colour augmentations know."""
        return (self.channels, self.bits) == (3, 8)


RGB = PixelFormat()


def to_pixel_format(
    array: NDArray[np.uint8 | np.uint16], wanted: PixelFormat, *, has_alpha: bool = False
) -> Pixels:
    """Convert an array (h, w, channels) to a pixel format, first in bits, then in channels.

    16 bits become 8 by their high byte, 8 become 16 times 257. One channel becomes three equal
    ones; three are red, green and blue and become one as Pillow's mode L. Nothing else changes the
    number of channels, but that alpha is dropped where one or three are wanted.

    Args:
        array: The values as they were stored.
        wanted: The format it is converted to.
        has_alpha: Whether the last channel is known to be alpha.

    Raises:
        UnreadableImage: No rule converts it to this format.
    """
    if array.dtype == np.uint16 and wanted.bits == 8:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == np.uint8 and wanted.bits == 16:
        array = array.astype(np.uint16) * np.uint16(257)
    stored = array.shape[2]
    if has_alpha and wanted.channels in (1, 3) and stored != wanted.channels:
        array = array[:, :, :-1]
    if array.shape[2] == 1 and wanted.channels == 3:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 3 and wanted.channels == 1:
        red, green, blue = (array[:, :, channel].astype(np.uint32) for channel in range(3))
        # Pillow's weights of mode L, as 16-bit fractions
        luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        array = luma.astype(array.dtype)[:, :, None]
    elif array.shape[2] != wanted.channels:
        raise UnreadableImage(
            f"has {describe_channels(stored)}, and {wanted.channels} are wanted (data.channels)"
        )
    return torch.from_numpy(array).permute(2, 0, 1)


def describe_channels(channels: int) -> str:
    """Return a number of channels in words, such as "1 channel" or "5 channels"."""
    return f"{channels} channel{'s' * (channels != 1)}"


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Refuse an image whose pixels would take too much memory, before any is allocated.

    Raises:
        UnreadableImage: There are more than MAX_PIXELS, or MAX_VALUES in all channels, or none.
    """
    if min(height, width, channels) < 1:
        raise UnreadableImage(f"is {height} x {width} pixels of {describe_channels(channels)}")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"has more than {MAX_PIXELS:,} pixels")
    if height * width * channels > MAX_VALUES:
        raise UnreadableImage(f"has more than {MAX_VALUES:,} values in all its channels")
