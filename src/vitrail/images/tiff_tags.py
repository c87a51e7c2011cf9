"""Read the tags of TIFF files, refuse kinds with no known scale, and choose who decodes the pixels.

Everything follows from the tags, never from what is installed: a kind that only a library can read
names it where it is missing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

from vitrail.images.pixels import (
    AS_INTEGERS,
    PixelFormat,
    UnreadableImage,
    check_size,
    describe_channels,
)

TIFF_BEGINS = tuple(PREFIXES)
"""First bytes of TIFF and BigTIFF, in both byte orders."""
BIG_INTEL = b"II+\0"
BIG_MOTOROLA = b"MM\0+"

# Numbers of tags
SUBFILE_TYPE = 254
IMAGE_WIDTH = 256
IMAGE_HEIGHT = 257
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
FILL_ORDER = 266
ORIENTATION = 274
SAMPLES_PER_PIXEL = 277
PLANAR_CONFIGURATION = 284
PREDICTOR = 317
INK_SET = 332
EXTRA_SAMPLES = 338
SAMPLE_FORMAT = 339
IMAGE_DEPTH = 32997
ICC_PROFILE = 34675
DNG = 50706

# Photometric interpretations
WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
COLOURS = 2
PALETTE = 3
INKS = 5
YCBCR = 6
COLOUR_NAMES = {
    4: "a transparency mask",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
"""Photometric interpretations that are not read."""
BASE = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, COLOURS: 3, PALETTE: 1, INKS: 4, YCBCR: 3}
"""Channels of each photometric interpretation, before extra ones such as alpha."""

# Extra samples
UNSPECIFIED = 0
ASSOCIATED = 1
UNASSOCIATED = 2
ONE_EXTRA = ((), (UNSPECIFIED,), (UNASSOCIATED,))
"""Extra channels that may lie beside inks, and are dropped."""

# Sample formats
UNSIGNED = 1
KINDS = {2: "int", 3: "float", 5: "complex int", 6: "complex"}
"""Sample formats that are not read; 1 is unsigned, and 4, undefined, is read as unsigned."""

# Compressions
STORED = 1
LZW = 5
OLD_JPEG = 6
JPEG = 7
PACKBITS = 32773
WEBP = 50001
DEFLATE = (8, 32946)

CANON_RAW = b"CR"
"""Bytes behind the header of a camera's raw file."""
REDUCED = 1
"""Bit of SUBFILE_TYPE that says that a page is a preview."""
CMYK = 1
"""The ink set of cyan, magenta, yellow and black."""
MOST_PAGES = 10_000
"""Most pages that are counted."""


@dataclass(frozen=True)
class Tags:
    """The tags of a TIFF's first page, as far as they concern its pixels."""

    height: int
    """Rows as stored; `upright` has the size as it is read."""
    width: int
    """Columns as stored."""
    samples: int
    """Channels, extra ones included."""
    bits: int
    """Bits of a channel."""
    kind: int
    """Sample format."""
    photometric: int
    planar: bool
    """Whether each channel lies in a plane of its own."""
    extra: tuple[int, ...]
    """Meaning of each channel beyond the colours."""
    compression: int
    predictor: int
    ink_set: int
    fill_order: int
    orientation: int
    depth: int
    """Layers of a volume, 1 for an image."""
    pages: int
    """Pages of the file, as far as they were counted."""
    profile: bytes | None
    """ICC colour profile."""
    is_big_motorola: bool
    """Whether it is a BigTIFF whose high bytes come first."""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as the image is read."""
        if self.orientation >= 5:
            return self.width, self.height
        return self.height, self.width

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha, or an unspecified one beside red, green and blue."""
        if self.extra in ((ASSOCIATED,), (UNASSOCIATED,)):
            return True
        return self.photometric == COLOURS and self.extra == (UNSPECIFIED,)

    @property
    def mode(self) -> str:
        """Pillow's mode of such an image, empty where it has none."""
        if self.photometric == PALETTE:
            return "P"
        if self.photometric == INKS:
            return "CMYK"
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            return {1: self._gray_mode, 2: "LA"}.get(self.samples, "")
        return {3: "RGB", 4: "RGBA"}.get(self.samples, "")

    @property
    def _gray_mode(self) -> str:
        if self.bits > 8:
            return "I;16"
        return "1" if self.bits == 1 else "L"


def read_tags(data: bytes, count: int = 1) -> Tags:
    """Read the tags of the first page.

    Args:
        data: The file.
        count: Number of pages up to which they are counted.

    Raises:
        UnreadableImage: They are damaged, or contradict each other.
    """
    pages = _directories(data)
    first = next(pages, None)
    if first is None:
        raise UnreadableImage("is a TIFF without an image")
    if data[8:10] == CANON_RAW or DNG in first or _number(first, SUBFILE_TYPE, 0) & REDUCED:
        raise UnreadableImage(
            "begins with a preview, as cameras' raw files do; save it as a plain TIFF"
        )
    compression = _number(first, COMPRESSION, STORED)
    photometric = _number(first, PHOTOMETRIC)
    if compression == OLD_JPEG and photometric == COLOURS:
        photometric = YCBCR  # as libtiff takes it
    base = BASE.get(photometric, 1)
    usual_samples = base if compression == OLD_JPEG else 1
    samples = _number(first, SAMPLES_PER_PIXEL, usual_samples)
    orientation = _number(first, ORIENTATION, 1)
    if not 1 <= orientation <= 8:
        orientation = 1
    profile = first.get(ICC_PROFILE)
    if not isinstance(profile, bytes):
        profile = None
    tags = Tags(
        height=_number(first, IMAGE_HEIGHT),
        width=_number(first, IMAGE_WIDTH),
        samples=samples,
        bits=_only_value(_numbers(first, BITS_PER_SAMPLE, (1,)), "bits"),
        kind=_only_value(_numbers(first, SAMPLE_FORMAT, (1,)), "format"),
        photometric=photometric,
        planar=_number(first, PLANAR_CONFIGURATION, 1) == 2 and samples > 1,
        extra=_extra_samples(first, samples - base),
        compression=compression,
        predictor=_number(first, PREDICTOR, 1),
        ink_set=_number(first, INK_SET, CMYK),
        fill_order=_number(first, FILL_ORDER, 1),
        orientation=orientation,
        depth=_number(first, IMAGE_DEPTH, 1),
        pages=1 + sum(1 for _ in islice(pages, count - 1)),
        profile=profile,
        is_big_motorola=data.startswith(BIG_MOTOROLA),
    )
    check_size(tags.height, tags.width, tags.samples)
    return tags


def choose_reader(tags: Tags, wanted: PixelFormat) -> Literal["pillow", "tifffile"]:
    """Choose who decodes an image: Pillow the kinds that it is known to read right, tifffile the others.

    Raises:
        UnreadableImage: It is of a kind that neither reads on a known scale.
    """
    _refuse_unknown(tags)
    if pages_are_channels(tags, wanted):
        return "tifffile"
    if _is_read_by_pillow(tags, wanted):
        return "pillow"
    return "tifffile"


def _extra_samples(directory: ImageFileDirectory_v2, count: int) -> tuple[int, ...]:
    """Return the meaning of each extra channel, UNSPECIFIED where the tags do not say."""
    declared = _numbers(directory, EXTRA_SAMPLES, ())
    if len(declared) != count:
        return (UNSPECIFIED,) * count
    meanings = []
    for meaning in declared:
        if meaning not in (ASSOCIATED, UNASSOCIATED):
            meaning = UNSPECIFIED
        meanings.append(meaning)
    return tuple(meanings)


def _directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Yield the tags of each page; a file may chain its pages in a ring."""
    file = io.BytesIO(data)
    head = data[:16] if b"+" in data[:4] else data[:8]
    if head.startswith(BIG_MOTOROLA):  # which Pillow can read, but does not know by its header
        directory = ImageFileDirectory_v2(BIG_INTEL + head[4:], prefix=head[:2])
    else:
        directory = ImageFileDirectory_v2(head)
    visited: set[int] = set()
    while directory.next and directory.next not in visited and len(visited) < MOST_PAGES:
        visited.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield directory


def _numbers(
    directory: ImageFileDirectory_v2, tag: int, otherwise: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    value = directory.get(tag, otherwise)
    if value is None:
        raise UnreadableImage(f"its TIFF tag {tag} is missing")
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, int) for one in values):
        raise UnreadableImage(f"its TIFF tag {tag} is damaged")
    return values


def _number(directory: ImageFileDirectory_v2, tag: int, otherwise: int | None = None) -> int:
    default = None if otherwise is None else (otherwise,)
    values = _numbers(directory, tag, default)
    if not values:
        raise UnreadableImage(f"its TIFF tag {tag} is damaged")
    return values[0]


def _only_value(values: tuple[int, ...], what: str) -> int:
    if len(set(values)) != 1:
        raise UnreadableImage(
            f"has channels of different {what} ({', '.join(map(str, values[:9]))})"
        )
    return values[0]


def _refuse_unknown(tags: Tags) -> None:
    if tags.kind in KINDS:
        raise UnreadableImage(f"is {KINDS[tags.kind]}{tags.bits}; {AS_INTEGERS}")
    if not 1 <= tags.bits <= 16:
        raise UnreadableImage(f"is uint{tags.bits}; {AS_INTEGERS}")
    if tags.depth != 1:
        raise UnreadableImage(f"is a volume of {tags.depth} layers; save one of them")
    base = BASE.get(tags.photometric)
    if base is None:
        colours = COLOUR_NAMES.get(tags.photometric, f"kind {tags.photometric}")
        raise UnreadableImage(f"holds its colours as {colours}; save it as gray or RGB")
    is_gray_jpeg = (
        tags.compression in (OLD_JPEG, JPEG) and tags.photometric == YCBCR and tags.samples == 1
    )
    if tags.samples < base and not is_gray_jpeg:
        raise UnreadableImage(
            f"has {describe_channels(tags.samples)} where its colours have {base}"
        )
    if tags.photometric == YCBCR and (
        tags.bits != 8 or tags.planar or tags.extra or tags.compression == STORED
    ):
        raise UnreadableImage(
            "holds its colours as YCbCr of a kind that is not read; save it as gray or RGB"
        )
    # tifffile adds them up, libtiff does not
    if tags.compression == PACKBITS and tags.predictor != 1:
        raise UnreadableImage(
            "holds differences packed by PackBits, which programs read in two ways; save it as LZW"
        )
    if tags.photometric == INKS and tags.ink_set != CMYK:
        raise UnreadableImage(
            "holds other inks than cyan, magenta, yellow and black; save it as gray or RGB"
        )
    beside = ""
    if tags.photometric == PALETTE and tags.extra:
        beside = "palette"
    elif tags.photometric == INKS and tags.extra not in ONE_EXTRA:
        beside = "inks"
    if beside:
        raise UnreadableImage(
            f"has {describe_channels(len(tags.extra))} beside its {beside}; save it as gray or RGB"
        )


def _is_read_by_pillow(tags: Tags, wanted: PixelFormat) -> bool:
    """Say whether Pillow is known to read such pixels right, and loses nothing that is wanted."""
    # Pillow's wheels lack WebP in TIFF
    if tags.compression not in COMPRESSION_INFO or tags.compression == WEBP:
        return False
    if tags.is_big_motorola or tags.kind != UNSIGNED:
        return False
    is_index_or_gray = tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
    if tags.samples == 1 and is_index_or_gray and tags.bits <= 8:
        return tags.bits in (1, 2, 4) or (tags.bits == 8 and tags.fill_order == 1)
    if tags.photometric == YCBCR:
        return True
    if tags.fill_order != 1:
        return False
    if tags.bits == 16:
        return _is_read_with_16_bits(tags, wanted)
    return tags.bits == 8 and _is_read_with_8_bits(tags, wanted)


def _is_read_with_16_bits(tags: Tags, wanted: PixelFormat) -> bool:
    if tags.samples == 1 and tags.photometric == BLACK_IS_ZERO:
        return True
    # of colours, Pillow keeps 8 bits
    if wanted.bits != 8 or tags.photometric != COLOURS or tags.planar:
        return False
    if tags.extra == (UNSPECIFIED,):
        return wanted.channels in (1, 3)  # which drop it
    return tags.extra in ((), (UNASSOCIATED,))


def _is_read_with_8_bits(tags: Tags, wanted: PixelFormat) -> bool:
    if tags.photometric == COLOURS:
        if tags.extra in ((), (UNASSOCIATED,)):
            return True
        if tags.extra == (UNSPECIFIED,):
            return not tags.planar and wanted.channels in (1, 3)  # which drop it
        return tags.extra == (ASSOCIATED,) and not tags.planar
    if tags.planar:
        return False
    if tags.photometric == INKS:
        return tags.extra in ((), (UNSPECIFIED,))
    return tags.photometric == BLACK_IS_ZERO and tags.extra == (UNASSOCIATED,)


def pages_are_channels(tags: Tags, wanted: PixelFormat) -> bool:
    """Say whether each page of a file holds one of the channels that are asked for."""
    is_gray = tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and tags.samples == 1
    return is_gray and wanted.channels not in (1, 3) and tags.pages == wanted.channels
