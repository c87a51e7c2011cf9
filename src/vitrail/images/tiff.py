"""TIFF: what its tags say, who reads it by that, and on what scale; what is not known here is refused.

Everything follows from the tags, never from what is installed: a kind that only a library can read names it where it is
missing. Samples of 1 to 16 bits become 16 by their own range, `round(value * 65535 / (2**bits - 1))`, and 8 by the high
byte of that, so that no number of bits makes an image darker. Packed samples begin with the highest bit, whatever the
order of bytes, as TIFF defines it. Associated alpha is divided out, inks become RGB as in Pillow, palettes their
colours.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

from vitrail.images.pixels import AS_INTEGERS, PixelFormat, UnreadableImage, check_size, counted

BEGINS = tuple(PREFIXES)
"""How TIFF and BigTIFF begin, in both orders of bytes."""
BIG_INTEL, BIG_MOTOROLA = b"II+\0", b"MM\0+"
ORIENTATION = 274
WHITE_IS_ZERO, BLACK_IS_ZERO, COLOURS, PALETTE, INKS, YCBCR = 0, 1, 2, 3, 5, 6
COLOUR_NAMES = {4: "a transparency mask", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "a colour filter array",
                32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}  # fmt: skip
BASE = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, COLOURS: 3, PALETTE: 1, INKS: 4, YCBCR: 3}
"""Channels of each kind of colours, before extra ones such as alpha."""
ASSOCIATED, UNASSOCIATED = 1, 2
ONE_EXTRA = ((), (0,), (UNASSOCIATED,))
"""What may lie beside inks, and is dropped."""
UNSIGNED = 1
KINDS = {2: "int", 3: "float", 5: "complex int", 6: "complex"}
"""Sample formats; 1 is unsigned, and 4, undefined, is read as unsigned."""
STORED, LZW, OLD_JPEG, JPEG, PACKBITS, WEBP, DEFLATE = 1, 5, 6, 7, 32773, 50001, (8, 32946)
PLAIN = (STORED, LZW, PACKBITS, *DEFLATE)
"""Compressions of bytes, which do not care what samples they are."""
CANON_RAW, DNG, REDUCED = b"CR", 50706, 1
"""What says that the first page is not the image: two letters, a tag, and a bit of another."""
CMYK = 1
"""Among the sets of inks."""
MOST_PAGES = 10_000
"""That are counted."""
Array = NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True)
class Tags:
    """What the first page says of itself."""

    height: int
    """As stored; `upright` has the size as it is read."""
    width: int
    samples: int
    bits: int
    kind: int
    photometric: int
    planar: bool
    """Whether each channel lies in a plane of its own."""
    extra: tuple[int, ...]
    """What the channels beyond the colours are."""
    compression: int
    predictor: int
    ink_set: int
    fill_order: int
    orientation: int
    depth: int
    """Layers of a volume."""
    pages: int
    """As far as they were counted."""
    profile: bytes | None
    is_big_motorola: bool
    """Whether it is a BigTIFF whose high bytes come first."""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as the image is read."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha, or the one beside red, green and blue that nothing is said of."""
        return self.extra in ((ASSOCIATED,), (UNASSOCIATED,)) or (self.photometric == COLOURS and self.extra == (0,))

    @property
    def mode(self) -> str:
        """The colours in Pillow's words, empty where it has none."""
        if self.photometric == PALETTE:
            return "P"
        if self.photometric == INKS:
            return "CMYK"
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            deep = "I;16" if self.bits > 8 else "1" if self.bits == 1 else "L"
            return {1: deep, 2: "LA"}.get(self.samples, "")
        return {3: "RGB", 4: "RGBA"}.get(self.samples, "")


def read_tags(data: bytes, count: int = 1) -> Tags:
    """Read the tags of the first page.

    Args:
        data: The file.
        count: How many pages to look for; more are not counted.

    Raises:
        UnreadableImage: They are damaged, or contradict each other.
    """
    pages = _directories(data)
    first = next(pages, None)
    if first is None:
        raise UnreadableImage("is a TIFF without an image")
    if data[8:10] == CANON_RAW or DNG in first or _number(first, 254, 0) & REDUCED:
        raise UnreadableImage("begins with a preview, as cameras' raw files do; save it as a plain TIFF")
    compression, photometric = _number(first, 259, STORED), _number(first, 262)
    if compression == OLD_JPEG and photometric == COLOURS:
        photometric = YCBCR  # as libtiff takes it
    base = BASE.get(photometric, 1)
    samples = _number(first, 277, base if compression == OLD_JPEG else 1)
    extra = tuple(one if one in (ASSOCIATED, UNASSOCIATED) else 0 for one in _numbers(first, 338, ()))
    orientation, profile = _number(first, ORIENTATION, 1), first.get(34675)
    tags = Tags(
        height=_number(first, 257),
        width=_number(first, 256),
        samples=samples,
        bits=_same(_numbers(first, 258, (1,)), "bits"),
        kind=_same(_numbers(first, 339, (1,)), "format"),
        photometric=photometric,
        planar=_number(first, 284, 1) == 2 and samples > 1,
        extra=extra if len(extra) == samples - base else (0,) * (samples - base),
        compression=compression,
        predictor=_number(first, 317, 1),
        ink_set=_number(first, 332, CMYK),
        fill_order=_number(first, 266, 1),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        depth=_number(first, 32997, 1),
        pages=1 + sum(1 for _ in islice(pages, count - 1)),
        profile=profile if isinstance(profile, bytes) else None,
        is_big_motorola=data.startswith(BIG_MOTOROLA),
    )
    check_size(tags.height, tags.width, tags.samples)
    return tags


def reader_of(tags: Tags, wanted: PixelFormat) -> Literal["pillow", "tifffile"]:
    """Say who reads an image: Pillow what it is known to read right, tifffile the rest of what is known here.

    Raises:
        UnreadableImage: It is of a kind that nobody reads on a known scale.
    """
    _refuse_unknown(tags)
    if _pages_are_channels(tags, wanted):
        return "tifffile"
    return "pillow" if _is_pillows(tags, wanted) else "tifffile"


def read_tiff(data: bytes, tags: Tags, wanted: PixelFormat) -> Array:
    """Read the first page with tifffile, or all where there are as many as channels and each holds one of them.

    Args:
        data: The file.
        tags: Of its first page, which `reader_of` gave to tifffile.
        wanted: Says how many channels are asked for.

    Returns:
        The array (h, w, channels), of uint8 or uint16 in the whole range of the type.

    Raises:
        UnreadableImage: It is damaged, or needs a library that is not installed.
    """
    with _open_tiff(data) as file:
        if not _pages_are_channels(tags, wanted):
            return _coloured(_read_page(file.pages[0], tags, data), tags, file.pages[0])
        check_size(tags.height, tags.width, wanted.channels)
        shapes, planes = set(), []
        for number in range(wanted.channels):
            page = file.pages.get(number)
            if page.photometric != tags.photometric or page.bitspersample != tags.bits or page.samplesperpixel != 1:
                raise UnreadableImage(f"has {wanted.channels} pages of different kinds")
            if (size := (page.imagelength, page.imagewidth)) != (tags.height, tags.width):
                shapes.add(size)
                continue
            planes.append(_coloured(_read_page(page, tags, data), tags, page))
        if shapes:
            raise UnreadableImage(f"has {wanted.channels} pages of different sizes")
        return np.concatenate(planes, axis=2)


def _directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Yield the tags of each page; a file may chain its pages in a ring."""
    file = io.BytesIO(data)
    head = data[:16] if b"+" in data[:4] else data[:8]
    if head.startswith(BIG_MOTOROLA):  # which Pillow can read, but does not know by its header
        directory = ImageFileDirectory_v2(BIG_INTEL + head[4:], prefix=head[:2])
    else:
        directory = ImageFileDirectory_v2(head)
    seen: set[int] = set()
    while directory.next and directory.next not in seen and len(seen) < MOST_PAGES:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield directory


def _numbers(directory: ImageFileDirectory_v2, tag: int, otherwise: tuple[int, ...] | None = None) -> tuple[int, ...]:
    value = directory.get(tag, otherwise)
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, int) for one in values):
        raise UnreadableImage(f"its TIFF tag {tag} is {'missing' if value is None else 'damaged'}")
    return values


def _number(directory: ImageFileDirectory_v2, tag: int, otherwise: int | None = None) -> int:
    values = _numbers(directory, tag, None if otherwise is None else (otherwise,))
    if not values:
        raise UnreadableImage(f"its TIFF tag {tag} is damaged")
    return values[0]


def _same(values: tuple[int, ...], what: str) -> int:
    if len(set(values)) != 1:
        raise UnreadableImage(f"has channels of different {what} ({', '.join(map(str, values[:9]))})")
    return values[0]


def _refuse_unknown(tags: Tags) -> None:
    if tags.kind in KINDS:
        raise UnreadableImage(f"is {KINDS[tags.kind]}{tags.bits}; {AS_INTEGERS}")
    if not 1 <= tags.bits <= 16:
        raise UnreadableImage(f"is uint{tags.bits}; {AS_INTEGERS}")
    if tags.depth != 1:
        raise UnreadableImage(f"is a volume of {tags.depth} layers; save one of them")
    base = BASE.get(tags.photometric)
    is_jpeg = tags.compression in (OLD_JPEG, JPEG)
    if base is None:
        colours = COLOUR_NAMES.get(tags.photometric, f"kind {tags.photometric}")
        raise UnreadableImage(f"holds its colours as {colours}; save it as gray or RGB")
    if tags.samples < base and not (is_jpeg and tags.photometric == YCBCR and tags.samples == 1):
        raise UnreadableImage(f"has {counted(tags.samples)} where its colours have {base}")
    if tags.photometric == YCBCR and (tags.bits != 8 or tags.planar or tags.extra or tags.compression == STORED):
        raise UnreadableImage("holds its colours as YCbCr of a kind that is not read; save it as gray or RGB")
    if tags.compression == PACKBITS and tags.predictor != 1:  # tifffile adds them up, libtiff does not
        raise UnreadableImage("holds differences packed by PackBits, which programs read in two ways; save it as LZW")
    if tags.photometric == INKS and tags.ink_set != CMYK:
        raise UnreadableImage("holds other inks than cyan, magenta, yellow and black; save it as gray or RGB")
    if (tags.photometric == PALETTE and tags.extra) or (tags.photometric == INKS and tags.extra not in ONE_EXTRA):
        beside = "palette" if tags.photometric == PALETTE else "inks"
        raise UnreadableImage(f"has {counted(len(tags.extra))} beside its {beside}; save it as gray or RGB")


def _is_pillows(tags: Tags, wanted: PixelFormat) -> bool:
    """Say whether Pillow is known to read such pixels right, and loses nothing that is wanted."""
    if tags.compression not in COMPRESSION_INFO or tags.compression == WEBP:  # which Pillow's wheels lack
        return False
    if tags.is_big_motorola or tags.kind != UNSIGNED:
        return False
    one, drops_extra = tags.samples == 1, wanted.channels in (1, 3)
    if one and tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE) and tags.bits <= 8:
        return tags.bits in (1, 2, 4) or (tags.bits == 8 and tags.fill_order == 1)
    if tags.photometric == YCBCR:
        return True
    if tags.fill_order != 1:
        return False
    if tags.bits == 16:
        colours = tags.photometric == COLOURS and not tags.planar and len(tags.extra) <= 1
        return (one and tags.photometric == BLACK_IS_ZERO) or (
            colours and wanted.bits == 8 and tags.extra != (ASSOCIATED,) and (tags.extra != (0,) or drops_extra)
        )
    if tags.bits != 8 or tags.extra not in ((), (0,), (ASSOCIATED,), (UNASSOCIATED,)):
        return False
    if tags.photometric == COLOURS:
        return tags.extra in ((), (UNASSOCIATED,)) or (not tags.planar and (tags.extra != (0,) or drops_extra))
    if tags.planar:
        return False
    return (tags.photometric == INKS and tags.extra in ((), (0,))) or (
        tags.photometric == BLACK_IS_ZERO and tags.extra == (UNASSOCIATED,)
    )


def _pages_are_channels(tags: Tags, wanted: PixelFormat) -> bool:
    gray = tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and tags.samples == 1
    return gray and wanted.channels not in (1, 3) and tags.pages == wanted.channels


def _open_tiff(data: bytes) -> Any:
    try:
        import tifffile  # few need it
    except ImportError as error:
        raise UnreadableImage("is a TIFF of a kind that needs tifffile (pip install tifffile)") from error

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what matters is raised
    return tifffile.TiffFile(io.BytesIO(data))


def _read_page(page: Any, tags: Tags, data: bytes) -> Array:
    """Return the samples of a page as (h, w, samples), upright, as they are stored."""
    found = (page.imagelength, page.imagewidth, page.samplesperpixel, page.bitspersample)
    if found != (tags.height, tags.width, tags.samples, tags.bits):
        raise UnreadableImage("its TIFF tags can be read in two ways")
    _check_whole(page, data)
    if tags.bits not in (8, 16):
        array = _unpacked(page, tags, data)
    elif page.dtype in (np.uint8, np.uint16):
        if tags.compression == STORED:
            page.predictor = 1  # only packed samples are differences; libtiff knows it, tifffile does not
        array = page.asarray(maxworkers=1)
        if tags.planar:
            array = array.reshape(tags.samples, tags.height, tags.width).transpose(1, 2, 0)
        array = array.reshape(tags.height, tags.width, tags.samples)
    else:
        raise UnreadableImage(f"is {page.dtype}; {AS_INTEGERS}")
    return _turned(array, tags.orientation)


def _check_whole(page: Any, data: bytes) -> None:
    """Refuse what tifffile would fill up with zeros, or unpack without bounds."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(pieces) < math.prod(page.chunked) or any(not 0 < at < at + size <= len(data) for at, size in pieces):
        raise UnreadableImage("is cut off, or has pieces that were never written")
    if page.compression in DEFLATE:
        values = math.prod(page.chunks)
        check_size(1, 1, values)
        most = values * 2
        for at, size in pieces:
            if len(zlib.decompressobj().decompress(data[at : at + size], most + 1)) > most:
                raise UnreadableImage("unpacks to more than its size")
    if page.compression not in (STORED, PACKBITS, *DEFLATE) and importlib.util.find_spec("imagecodecs") is None:
        packed = getattr(page.compression, "name", page.compression)
        raise UnreadableImage(f"is packed by {packed}, which needs imagecodecs (pip install imagecodecs)")


def _unpacked(page: Any, tags: Tags, data: bytes) -> Array:
    """Read samples that are no whole bytes, which begin with their highest bit and each row with a new byte."""
    if tags.compression not in PLAIN or tags.predictor != 1:
        raise UnreadableImage(f"packs samples of {tags.bits} bits in a way that is not read; save it with 8 or 16 bits")
    from tifffile import TIFF  # which is there, as it opened the file

    rows, columns = page.chunks[0], page.chunks[1]
    planes, samples = (tags.samples, 1) if tags.planar else (1, tags.samples)
    down, across = -(-tags.height // rows), -(-tags.width // columns)
    row_bytes = -(-columns * samples * tags.bits // 8)
    array = np.zeros((down * rows, across * columns, tags.samples), np.uint8 if tags.bits <= 8 else np.uint16)
    weights = (1 << np.arange(tags.bits)[::-1]).astype(np.uint16)
    for number in range(planes * down * across):
        begin, size = page.dataoffsets[number], page.databytecounts[number]
        piece: Any = data[begin : begin + size]
        if tags.fill_order == 2:
            piece = np.packbits(np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little")).tobytes()
        if tags.compression != STORED:
            piece = TIFF.DECOMPRESSORS[tags.compression](piece, out=rows * row_bytes)
        plane, place = divmod(number, down * across)
        top, left = place // across * rows, place % across * columns
        there = rows if page.is_tiled else min(rows, tags.height - top)
        if len(piece) < there * row_bytes:
            raise UnreadableImage("is cut off, or has pieces that were never written")
        bits = np.unpackbits(np.frombuffer(piece, np.uint8, there * row_bytes).reshape(there, row_bytes), axis=1)
        values = bits[:, : columns * samples * tags.bits].reshape(there, columns, samples, tags.bits) @ weights
        chosen = slice(plane, plane + 1) if tags.planar else slice(None)
        array[top : top + there, left : left + columns, chosen] = values
    return array[: tags.height, : tags.width]


def _turned(array: Array, orientation: int) -> Array:
    """Return an array upright: in TIFF, orientation is a part of the format."""
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return array[::rows, ::columns]


def _coloured(array: Array, tags: Tags, page: Any) -> Array:
    """Bring samples to the whole range of uint8 or uint16, and what is neither gray nor RGB to RGB."""
    if tags.photometric == PALETTE:
        colours = np.asarray(page.colormap, np.uint16)
        if colours.shape[0] != 3 or array.max() >= colours.shape[1]:
            raise UnreadableImage("has colours that its palette lacks")
        if colours.max() < 256:  # as some programs write it
            colours = colours * np.uint16(257)
        return np.ascontiguousarray(colours.T[array[:, :, 0]])
    most = 2**tags.bits - 1
    if tags.bits not in (8, 16):
        scale = (np.arange(most + 1, dtype=np.uint64) * (2 * 65535) + most) // (2 * most)
        array = scale.astype(np.uint16)[array]
    array = np.array(array, order="C")  # tifffile may give what cannot be written to
    full = 255 if array.dtype == np.uint8 else 65535
    if tags.photometric == WHITE_IS_ZERO:
        array[:, :, 0] = full - array[:, :, 0]
    if tags.photometric == INKS:
        inks, black = array[:, :, :3].astype(np.uint64), array[:, :, 3:4].astype(np.uint64)
        paper = full - black
        return (paper - (inks * paper + full // 2) // full).astype(array.dtype)
    if tags.extra == (ASSOCIATED,):
        alpha = array[:, :, -1:].astype(np.uint64)
        straight = np.minimum(array[:, :, :-1] * np.uint64(full) // np.maximum(alpha, 1), full)
        array[:, :, :-1] = np.where(alpha == 0, 0, straight)
    return array
