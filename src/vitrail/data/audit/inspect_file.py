"""Inspect one image file: format, oddities such as a wrong extension, and two hashes that find its duplicates."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from enum import IntFlag
from pathlib import PurePath

import numpy as np
import torch
from torch.nn.functional import interpolate

from vitrail.images.decoding import Header, decode_quietly, ends_early, read_header
from vitrail.images.formats import ENDINGS
from vitrail.images.pixels import RGB, PixelFormat, Pixels, UnreadableImage

RULES = 2
"""Version of the inspection: a manifest that was written by another version is inspected anew."""
FORMATS = ("", "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "MPO", "NPY", "AVIF")
"""Formats by their number in a manifest; the first is unknown, or none that is read."""
HUGE_PIXELS = 50_000_000
"""Pixels above which decoding one image takes longer than a training step."""
HASH_SIDE = 8
"""Frequencies in each direction that a perceptual hash takes."""


class Finding(IntFlag):
    """Oddities of a file, as flags; the values are written into manifests."""

    UNREADABLE = 1
    EMPTY = 2
    WRONG_ENDING = 4
    HUGE = 8
    TURNED = 16
    """EXIF orientation is not upright."""
    CMYK = 32
    DEEP = 64
    """More than 8 bits a channel."""
    ANIMATED = 128
    ALPHA = 256
    GRAY = 512
    ENDS_EARLY = 1024
    """A JPEG whose pixels run out before its end."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The inspection of one file."""

    findings: Finding
    reason: str
    """Why it cannot be read; empty where it can."""
    format: int
    """Index into FORMATS."""
    width: int
    """Pixels in a row as stored, 0 where the header cannot be read."""
    height: int
    """Rows as stored, 0 where the header cannot be read."""
    content: bytes
    """Hash of the file's bytes, 16 bytes."""
    picture: int
    """Perceptual hash: 64 bits, few of which differ between versions of a picture; 0 for an image
    of one colour."""


def inspect(name: str, data: bytes, wanted: PixelFormat = RGB) -> Inspection:
    """Decode a file as training does, and return what is found in it.

    Args:
        name: Name of the file, for its extension.
        data: Bytes of the file.
        wanted: Pixel format that images are decoded to.
    """
    content = hash_content(data)
    if not data:
        empty = Finding.UNREADABLE | Finding.EMPTY
        return Inspection(empty, "the file is empty", 0, 0, 0, content, 0)
    form = width = height = 0
    findings = Finding(0)
    with contextlib.suppress(UnreadableImage):  # decoding alone says whether it can be read
        header = read_header(data)
        width, height = header.width, header.height
        if header.format in FORMATS:
            form = FORMATS.index(header.format)
        findings = _oddities(PurePath(name).suffix.lower(), header)
        pages_are_channels = header.format == "TIFF" and header.frames == wanted.channels not in (
            1,
            3,
        )
        if pages_are_channels:
            findings &= ~Finding.ANIMATED
    try:
        pixels = decode_quietly(data, wanted)
    except UnreadableImage as error:
        return Inspection(
            findings | Finding.UNREADABLE, str(error), form, width, height, content, 0
        )
    if ends_early(data, pixels, wanted):
        findings |= Finding.ENDS_EARLY
    return Inspection(
        findings, "", form, pixels.shape[2], pixels.shape[1], content, hash_picture(pixels)
    )


def hash_content(data: bytes) -> bytes:
    """Return a hash of 16 bytes, which two files share only if they are equal."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _oddities(suffix: str, header: Header) -> Finding:
    allowed = ENDINGS.get(header.format)
    is_gray = header.mode in ("1", "L", "LA", "I", "F") or header.mode.startswith("I;16")
    applies = {
        Finding.WRONG_ENDING: allowed is not None and suffix not in allowed,
        Finding.HUGE: header.width * header.height > HUGE_PIXELS,
        Finding.TURNED: header.orientation > 1,
        Finding.CMYK: header.mode == "CMYK",
        Finding.DEEP: header.bits > 8,
        Finding.ANIMATED: header.frames > 1,
        Finding.ALPHA: header.has_alpha,
        Finding.GRAY: is_gray,
    }
    return Finding(sum(flag for flag, is_so in applies.items() if is_so))


def hash_picture(pixels: Pixels) -> int:
    """Return the perceptual hash of an image: the signs of the 64 lowest frequencies of its gray levels, as bits.

    Scaled, recompressed or slightly brightened copies differ in few bits, other pictures in about
    32 (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010).
    """
    # takes half a second to import, and only looking through data needs it
    from scipy.fft import dctn

    side = 4 * HASH_SIDE
    if pixels.dtype == torch.uint16:
        pixels = pixels.float() / 257
    small = interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0].double()
    channels = len(small)
    weights = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    gray = (small * torch.tensor(weights, dtype=torch.float64)[:, None, None]).sum(0).numpy()
    if np.ptp(gray) < 8:
        return 0  # one colour, whose frequencies are rounding errors
    frequencies = np.asarray(dctn(gray, norm="ortho"))
    bits = frequencies[:HASH_SIDE, :HASH_SIDE].ravel() > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
