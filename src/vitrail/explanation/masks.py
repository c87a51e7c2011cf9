"""Where the truth is in images: masks or boxes, read from a folder that is laid out as the images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from vitrail.data.sources import FileSource, Source
from vitrail.errors import ConfigError, DataError, name_option, printable, write_option
from vitrail.files import read_regular
from vitrail.images.decoding import decode_quietly, read_image
from vitrail.images.pixels import PixelFormat, Pixels, UnreadableImage
from vitrail.images.preprocess import Preprocess

MASK, BOXES = ".png", ".xml"
LARGEST_BOXES = 2**20
"""Bytes of a file of boxes; those of ImageNet have about a thousand."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
GRAY = PixelFormat(channels=1, bits=8)


@dataclass(frozen=True)
class Masks:
    """A folder with a file for each image that says where the truth is.

    That is a PNG, in which all that is not 0 is the truth, or an XML file of PASCAL VOC, as ImageNet's
    boxes are, whose boxes are the truth.
    """

    folder: Path
    preprocess: Preprocess
    """How the images are cut and resized, and so the masks."""
    empty: list[str] = field(default_factory=list)
    """Names of the images whose masks have nothing inside of what the model sees."""
    missing: list[str] = field(default_factory=list)
    """Names of the images that have no mask."""

    def find(self, image: Path) -> Path | None:
        """Return the mask of an image: of the end of its path that is longest, and has one in the folder."""
        parts = image.parts
        for first in range(len(parts)):
            if first == 0 and image.is_absolute():
                continue
            for ending in (MASK, BOXES):
                path = self.folder.joinpath(*parts[first:]).with_suffix(ending)
                if path.is_file():
                    return path
        return None

    def read(self, path: Path, pixels: Pixels) -> Tensor:
        """Return what is inside a mask (h, w) of an image, cut and resized as the image is.

        Args:
            path: The mask, or the boxes.
            pixels: The image as it is in its file.

        Raises:
            DataError: The file cannot be read, or is of another size than the image.
        """
        read = read_boxes if path.suffix == BOXES else read_mask
        mask = read(path, pixels.shape[1], pixels.shape[2])
        plain = replace(self.preprocess, channels=1, bits=8, mean=(0.0,), std=(1.0,))
        inside = (mask > 0).to(torch.uint8) * 255
        return plain.view(inside)[0] > 127


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """Return the values of a mask (1, h, w), of which all but 0 is inside.

    Raises:
        DataError: The file cannot be read, or is of another size than the image.
    """
    try:
        mask = decode_quietly(read_image(path), GRAY)
    except (OSError, UnreadableImage) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{printable(path)}: the mask cannot be read ({reason}); give a PNG"
        ) from error
    if mask.shape[1:] != (height, width):
        raise DataError(
            f"{printable(path)}: the mask is {mask.shape[2]}x{mask.shape[1]} and its image "
            f"{width}x{height}; give masks of the size of their images"
        )
    return mask


def read_boxes(path: Path, height: int, width: int) -> Tensor:
    """Return what is inside the boxes of an XML file of PASCAL VOC as a mask (1, h, w).

    Boxes of all its objects count. Pixels are counted from 1, and a box has its last ones, as
    PASCAL VOC has it (https://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf).

    Args:
        path: The file.
        height: Height of its image in pixels.
        width: Width of its image in pixels.

    Raises:
        DataError: The file cannot be read, has no box, or is of another size than the image.
    """
    where = printable(path)
    try:
        text = read_regular(path, LARGEST_BOXES)
        if b"<!" in text.replace(b"<!--", b""):  # entities can grow without end
            raise ValueError("it declares a document type or entities")
        root = ElementTree.fromstring(text)
        sides = [int(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
        boxes = [
            [round(float(box.findtext(corner, ""))) for corner in CORNERS]
            for box in root.iterfind("object/bndbox")
        ]
    except (OSError, ValueError, OverflowError, ElementTree.ParseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{where}: the boxes cannot be read ({reason}); give an XML file of PASCAL VOC"
        ) from error
    if not boxes:
        raise DataError(
            f"{where}: has no box, which PASCAL VOC writes as object/bndbox; give one, or remove it"
        )
    if any(sides) and sides != [width, height]:
        raise DataError(
            f"{where}: the boxes are of an image of {sides[0]}x{sides[1]} and it has "
            f"{width}x{height}; give boxes for the images as they are"
        )
    inside = torch.zeros(1, height, width, dtype=torch.uint8)
    for left, top, right, bottom in boxes:
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            raise DataError(
                f"{where}: a box from {left},{top} to {right},{bottom} does not lie in its image of "
                f"{width}x{height}; count pixels from 1"
            )
        inside[:, max(top - 1, 0) : bottom, max(left - 1, 0) : right] = 1
    return inside


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
        raise ConfigError(f"{where}: is no folder; give the folder that the masks or boxes are in")
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
        f"would be {printable(folder / example.with_suffix(MASK).name)} or "
        f"{example.with_suffix(BOXES).name} with boxes"
    )
