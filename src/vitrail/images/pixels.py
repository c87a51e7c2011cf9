"""What every image is read as, so many channels of so many bits, and the rules from what a file holds to that."""

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
"""Where Pillow, too, refuses an image as a decompression bomb."""
MAX_VALUES = 4 * MAX_PIXELS
"""In all channels together."""
AS_INTEGERS = "save it as uint8 or uint16, in the range of that type"
"""What to do with numbers that have no known range."""


class UnreadableImage(DataError):
    """An image that cannot be decoded; the text is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What every image is read as."""

    channels: int = 3
    bits: Bits = 8
    """Of a channel: pixels are uint8 or uint16."""
    exif: Exif = "ignore"
    """Whether EXIF orientation turns the image. Published accuracies were measured without. (A TIFF is turned either
    way: there, orientation is part of the format.)"""

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels."""
        return torch.uint8 if self.bits == 8 else torch.uint16

    @property
    def is_picture(self) -> bool:
        """Whether it is what screens show and colour augmentations know: RGB of 8 bits."""
        return (self.channels, self.bits) == (3, 8)


RGB = PixelFormat()


def fit(array: NDArray[np.uint8 | np.uint16], wanted: PixelFormat, *, has_alpha: bool = False) -> Pixels:
    """Turn an array (h, w, channels) into the pixels that are wanted, first in bits, then in channels.

    16 bits become 8 by their high byte, 8 become 16 times 257. One channel becomes three equal ones; three are red,
    green and blue and become one as Pillow's mode L. Nothing else changes the number of channels, but that alpha is
    dropped where one or three are wanted.

    Args:
        array: As it was stored.
        wanted: What it becomes.
        has_alpha: Whether the last channel is known to be alpha.

    Raises:
        UnreadableImage: No rule leads there.
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
        luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        array = luma.astype(array.dtype)[:, :, None]
    elif array.shape[2] != wanted.channels:
        raise UnreadableImage(f"has {counted(stored)}, and {wanted.channels} are wanted (data.channels)")
    return torch.from_numpy(array).permute(2, 0, 1)


def counted(channels: int) -> str:
    """Return a number of channels in words."""
    return f"{channels} channel{'s' * (channels != 1)}"


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Refuse what would take more memory than any picture should, before any is taken.

    Raises:
        UnreadableImage: There are more than MAX_PIXELS, or MAX_VALUES in all channels, or none.
    """
    if min(height, width, channels) < 1:
        raise UnreadableImage(f"is {height} x {width} pixels of {counted(channels)}")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"has more than {MAX_PIXELS:,} pixels")
    if height * width * channels > MAX_VALUES:
        raise UnreadableImage(f"has more than {MAX_VALUES:,} values in all its channels")
