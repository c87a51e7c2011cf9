"""Masks of images: where the truth is, read from a folder that is laid out as the images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vitrail.data.sources import FileSource, Source
from vitrail.errors import ConfigError, DataError, name_option, printable, write_option
from vitrail.images.decoding import decode_quietly, read_image
from vitrail.images.pixels import PixelFormat, Pixels, UnreadableImage
from vitrail.images.preprocess import Preprocess

ENDING = ".png"
GRAY = PixelFormat(channels=1, bits=8)


@dataclass(frozen=True)
class Masks:
    """A folder of masks: PNG files, in which all that is not 0 is the truth."""

    folder: Path
    preprocess: Preprocess
    """How the images are cut and resized, and so the masks."""

    def find(self, image: Path) -> Path | None:
        """Return the mask of an image: of the end of its path that is longest, and has one in the folder."""
        parts = image.with_suffix(ENDING).parts
        for first in range(len(parts)):
            if first == 0 and image.is_absolute():
                continue
            path = self.folder.joinpath(*parts[first:])
            if path.is_file():
                return path
        return None

    def read(self, path: Path, pixels: Pixels) -> Tensor:
        """Return what is inside a mask (h, w) of an image, cut and resized as the image is.

        Args:
            path: The mask.
            pixels: The image as it is in its file.

        Raises:
            DataError: The mask cannot be read, or is of another size than the image.
        """
        try:
            mask = decode_quietly(read_image(path), GRAY)
        except (OSError, UnreadableImage) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{printable(path)}: the mask cannot be read ({reason})") from error
        if mask.shape[1:] != pixels.shape[1:]:
            (height, width), (wanted_height, wanted_width) = mask.shape[1:], pixels.shape[1:]
            raise DataError(
                f"{printable(path)}: the mask is {width}x{height} and its image "
                f"{wanted_width}x{wanted_height}; give masks of the size of their images"
            )
        plain = replace(self.preprocess, channels=1, bits=8, mean=(0.0,), std=(1.0,))
        inside = (mask > 0).to(torch.uint8) * 255
        return plain.view(inside)[0] > 127


def open_masks(
    folder: Path | None, source: Source, chosen: Sequence[int], preprocess: Preprocess
) -> Masks | None:
    """Return the masks of some images, None where none are asked for.

    Raises:
        ConfigError: There is no such folder, the images are no files, or none of them has a mask.
    """
    if folder is None:
        return None
    where = write_option("masks", printable(folder))
    if not folder.is_dir():
        raise ConfigError(f"{where}: is no folder; give the folder that the masks are in")
    if not isinstance(source, FileSource):
        raise ConfigError(
            f"{where}: {source.description} has no files that masks could be called as; leave out "
            f"{name_option('masks')}, or give a folder of images"
        )
    masks = Masks(folder, preprocess)
    if any(masks.find(source.path(index)) is not None for index in chosen):
        return masks
    example = source.path(chosen[0])
    raise ConfigError(
        f"{where}: has no mask of any of the {len(chosen):,} images; that of {printable(example)} "
        f"would be {printable(folder / example.with_suffix(ENDING).name)}"
    )
