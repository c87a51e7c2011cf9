"""What one image file is: its format, what is odd about it, and two numbers that find its copies."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from enum import IntFlag
from pathlib import PurePath

import numpy as np
import torch
from torch.nn.functional import interpolate

from vitrail.images.decoding import ENDINGS, Header, decode_quietly, ends_early, read_header
from vitrail.images.pixels import RGB, PixelFormat, Pixels, UnreadableImage

RULES = 2
"""Changes with what can be read and what is found in it, so that what was found by others is looked at again."""
FORMATS = ("", "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "MPO", "NPY", "AVIF")
"""By their number in a manifest; the first is unknown, or none that is read."""
HUGE_PIXELS = 50_000_000
"""Beyond, decoding one image takes longer than a training step."""
HASH_SIDE = 8


class Finding(IntFlag):
    """What is odd about a file; the values are written into manifests."""

    UNREADABLE = 1
    EMPTY = 2
    WRONG_ENDING = 4
    HUGE = 8
    TURNED = 16
    """EXIF says that it is to be turned."""
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
    """What was found in one file."""

    findings: Finding
    reason: str
    """Why it cannot be read; empty where it can."""
    format: int
    """Index into FORMATS."""
    width: int
    """Pixels as stored, 0 where the header cannot be read."""
    height: int
    content: bytes
    """16 bytes that two files share only if they are equal."""
    picture: int
    """64 bits that differ in few places between versions of a picture; 0 where there is nothing to see."""


def inspect(name: str, data: bytes, wanted: PixelFormat = RGB) -> Inspection:
    """Read a file as training does, and say what it is.

    Args:
        name: Its name, for the ending.
        data: Its bytes.
        wanted: What images are read as.
    """
    content = content_hash(data)
    if not data:
        empty = Finding.UNREADABLE | Finding.EMPTY
        return Inspection(empty, "the file is empty", 0, 0, 0, content, 0)
    form, width, height, findings = 0, 0, 0, Finding(0)
    with contextlib.suppress(UnreadableImage):  # decoding alone says whether it can be read
        header = read_header(data)
        width, height = header.width, header.height
        form = FORMATS.index(header.format) if header.format in FORMATS else 0
        findings = _oddities(PurePath(name).suffix.lower(), header)
        if header.format == "TIFF" and header.frames == wanted.channels not in (1, 3):
            findings &= ~Finding.ANIMATED  # each page is a channel
    try:
        pixels = decode_quietly(data, wanted)
    except UnreadableImage as error:
        return Inspection(findings | Finding.UNREADABLE, str(error), form, width, height, content, 0)
    if ends_early(data, pixels, wanted):
        findings |= Finding.ENDS_EARLY
    return Inspection(findings, "", form, pixels.shape[2], pixels.shape[1], content, picture_hash(pixels))


def content_hash(data: bytes) -> bytes:
    """Return 16 bytes that two files share only if they are equal."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _oddities(suffix: str, header: Header) -> Finding:
    allowed = ENDINGS.get(header.format)
    found = {
        Finding.WRONG_ENDING: allowed is not None and suffix not in allowed,
        Finding.HUGE: header.width * header.height > HUGE_PIXELS,
        Finding.TURNED: header.orientation > 1,
        Finding.CMYK: header.mode == "CMYK",
        Finding.DEEP: header.bits > 8,
        Finding.ANIMATED: header.frames > 1,
        Finding.ALPHA: header.has_alpha,
        Finding.GRAY: header.mode in ("1", "L", "LA", "I", "F") or header.mode.startswith("I;16"),
    }
    return Finding(sum(flag for flag, is_so in found.items() if is_so))


def picture_hash(pixels: Pixels) -> int:
    """Return the signs of the 64 lowest frequencies of a picture's gray levels, as bits.

    Scaled, recompressed or slightly brightened copies differ in few bits, other pictures in about 32
    (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010).
    """
    from scipy.fft import dctn  # takes half a second to import, and only looking through data needs it

    side = 4 * HASH_SIDE
    if pixels.dtype == torch.uint16:
        pixels = pixels.float() / 257
    small = interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0].double()
    weights = [0.299, 0.587, 0.114] if len(small) == 3 else [1 / len(small)] * len(small)
    gray = (small * torch.tensor(weights, dtype=torch.float64)[:, None, None]).sum(0).numpy()
    if np.ptp(gray) < 8:
        return 0  # one colour: its frequencies are rounding
    bits = np.asarray(dctn(gray, norm="ortho"))[:HASH_SIDE, :HASH_SIDE].ravel() > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
