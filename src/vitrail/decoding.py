"""The bytes of an image file turned into pixels, the same whichever decoder is installed."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.errors import DataError

Exif = Literal["ignore", "apply"]

FAST_DECODERS: dict[str | None, Any] = {}
DECODER: Literal["torchcodec", "pillow"] = "pillow"
"""What decodes JPEG, PNG and WebP; all else is Pillow's."""
try:
    from torchcodec.decoders import decode_jpeg, decode_png, decode_webp  # type: ignore[reportPrivateImportUsage]

    FAST_DECODERS = {"JPEG": decode_jpeg, "PNG": decode_png, "WEBP": decode_webp}
    DECODER = "torchcodec"
except (ImportError, OSError, RuntimeError):
    # not installed, or built for another torch: Pillow gives the same pixels, more slowly
    pass

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses an image as a decompression bomb
ORIENTATION = 0x0112  # the EXIF tag
TIFF_BITS = 258  # the TIFF tag BitsPerSample


class UnreadableImage(DataError):
    """An image that cannot be decoded; the text is the reason, without the file's name."""


# Pillow warns of odd metadata that does not touch the pixels. `catch_warnings` swaps global state, which two threads of
# a server may not do at once; header reading is short, and torchcodec decodes outside.
_PILLOW = threading.RLock()


@contextmanager
def _silent_pillow() -> Iterator[None]:
    """Hold back Pillow's warnings, and turn whatever it raises on broken files into UnreadableImage."""
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImage("not an image of a known format") from error
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"has more than {MAX_PIXELS:,} pixels") from error
        except (
            Exception
        ) as error:  # plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, ...
            raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def decode(data: bytes, exif: Exif = "ignore") -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to RGB, the same pixels whichever decoder is installed.

    Args:
        data: The file's bytes; the format is found from them.
        exif: Whether EXIF orientation turns the image. Published accuracies were measured without. (Pillow turns a TIFF
            either way: there, orientation is part of the format.)

    Raises:
        UnreadableImage: Broken, truncated, no image, or larger than MAX_PIXELS.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        image = Image.open(io.BytesIO(data))  # reads the header only
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"has more than {MAX_PIXELS:,} pixels")
        decoder = FAST_DECODERS.get(image.format)
        if decoder is None or not _is_plain(image, data, exif):
            return to_pixels(image, exif)
    try:
        return decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    except RuntimeError:
        # Pillow has the last word, so that what is readable does not depend on the decoder
        return to_pixels(image, exif)


class Header(NamedTuple):
    """What an image file says of itself before its pixels."""

    format: str
    mode: str
    """In Pillow's words."""
    width: int
    height: int
    bits: int
    """Of a channel."""
    frames: int
    orientation: int
    """Of EXIF, 1 is upright."""
    has_alpha: bool
    profile: bytes | None
    """Of its colours, by the ICC."""


def read_header(file: BinaryIO) -> Header:
    """Read what stands before an image's pixels.

    Raises:
        UnreadableImage: It is no image of a known format, or broken.
    """
    with _silent_pillow():
        image = Image.open(file)
        bits = 16 if image.mode.startswith("I;16") else {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)
        if image.format == "PNG":
            file.seek(24)  # Pillow shows 16-bit colour as 8
            bits = file.read(1)[0]
        elif image.format == "TIFF":
            bits = max(getattr(image, "tag_v2", {}).get(TIFF_BITS, (bits,)))
        return Header(
            image.format or "", image.mode, image.width, image.height, bits, getattr(image, "n_frames", 1),
            _orientation(image) if image.format != "PNG" else 1,
            "A" in image.mode or "transparency" in image.info, image.info.get("icc_profile"),
        )  # fmt: skip


def _is_plain(image: Image.Image, data: bytes, exif: Exif) -> bool:
    """Say whether torchcodec is known to give Pillow's pixels: one 8-bit frame that no EXIF entry turns."""
    if getattr(image, "n_frames", 1) != 1:
        return False
    if image.format == "PNG":
        # byte 24 is the bit depth; Pillow would decode the whole file to look for EXIF, so its mere presence must do
        return data[24] <= 8 and exif == "ignore" and b"eXIf" not in data
    return image.mode in ("RGB", "L", "RGBA") and _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none, 0 where EXIF is too broken to say."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as many kinds as above; broken metadata does not make the pixels unreadable
        return 0


def to_pixels(image: Image.Image, exif: Exif = "ignore") -> UInt8[Tensor, "3 h w"]:
    """Turn a Pillow image of any mode into RGB pixels; alpha is dropped, the first frame is taken, 16 bits become 8."""
    with _silent_pillow():
        wide = image.mode.startswith("I;16") or (
            image.mode == "I" and image.format == "PPM"
        )  # Pillow scales PPM to 16 bits
        if image.mode in ("I", "F") and not wide:
            raise UnreadableImage("its 32-bit pixels have no fixed range; save it with 8 or 16 bits")
        if exif == "apply" and 2 <= _orientation(image) <= 8:
            image = ImageOps.exif_transpose(image)
        if wide:
            # the high byte, as Pillow takes it for 16-bit colour; its own conversion of gray clips at 255
            gray = (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
            array = np.repeat(gray[:, :, None], 3, axis=2)
        else:
            array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What a stranger may have decoded: Pillow starts other programs for some of the other formats."""
MAX_SCANS = 100
"""Of a JPEG. Each goes over the whole image, so a small file with thousands of them would take hours; usual are 10."""


def check_picture(data: bytes, max_pixels: int) -> None:
    """Refuse a stranger's image that would take much to decode, by its header alone.

    Raises:
        UnreadableImage: It is of none of PICTURES, or has too many pixels or scans.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        image = Image.open(io.BytesIO(data), formats=PICTURES)
        if image.width * image.height > max_pixels:
            raise UnreadableImage(f"has {image.width} x {image.height} pixels; at most {max_pixels:,} are taken")
        if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
            raise UnreadableImage(f"has more than {MAX_SCANS} scans; save it as a plain JPEG")
