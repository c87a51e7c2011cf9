"""The bytes of an image file turned into pixels, the same whichever decoder is installed."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from vitrail.arrays import NPY, TIFF, npy_header, read_npy, read_tiff, tiff_header
from vitrail.pixels import MAX_PIXELS, RGB, Exif, PixelFormat, Pixels, UnreadableImage, check_size, fit

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

ORIENTATION = 0x0112  # the EXIF tag
TIFF_BITS = 258  # the TIFF tag BitsPerSample
COLOURS = ("LA", "RGB", "RGBA", "RGBX")
"""Pillow's modes that stand for colours of 16 bits too."""
WITH_ALPHA = {2: ("LA",), 4: ("RGBA", "RGBX")}

# Pillow warns of odd metadata that does not touch the pixels. `catch_warnings` swaps global state, which two threads of
# a server may not do at once; header reading is short, and torchcodec decodes outside.
_PILLOW = threading.RLock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # which else prints what becomes a reason here


@contextmanager
def _silent_pillow(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Hold back Pillow's warnings, and turn whatever it raises on broken files into UnreadableImage.

    Args:
        max_pixels: What to call the limit where Pillow's own is passed.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImage("not an image of a known format") from error
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"has more than {max_pixels:,} pixels") from error
        except (
            Exception
        ) as error:  # plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, ...
            raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def decode(data: bytes, wanted: PixelFormat = RGB) -> Pixels:
    """Decode an image file, to the same pixels whichever decoder is installed.

    Args:
        data: The file's bytes; the format is found from them.
        wanted: Channels, bits and whether EXIF turns the image; `pixels.fit` has the rules.

    Raises:
        UnreadableImage: Broken, truncated, no image, larger than MAX_PIXELS, or nothing that becomes what is wanted.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        if data.startswith(NPY):
            return fit(read_npy(data, wanted.channels), wanted)
        image = _open(data)
        if image is None or _needs_tifffile(image, wanted):
            array, has_alpha = read_tiff(data, wanted.channels)
            return fit(array, wanted, has_alpha=has_alpha)
        check_size(image.height, image.width)
        if wanted.bits == 16 and image.mode in COLOURS and not _has_8_bits(image, data):
            array = _deep_colours(image, data)
            return fit(array, wanted, has_alpha=array.shape[2] in (2, 4))
        decoder = FAST_DECODERS.get(image.format)
        if decoder is None or wanted.channels not in (1, 3) or not _is_plain(image, data, wanted.exif):
            return to_pixels(image, wanted)
    is_gray = wanted.channels == 1 and image.mode == "L"
    try:
        # of colours, each decoder has its own idea of gray
        pixels = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="GRAY" if is_gray else "RGB")
    except RuntimeError:
        # Pillow has the last word, so that what is readable does not depend on the decoder
        return to_pixels(image, wanted)
    return pixels if wanted.is_picture else fit(pixels.permute(1, 2, 0).numpy(), wanted)


def _open(data: bytes) -> Image.Image | None:
    """Read the header of an image; None stands for a TIFF that Pillow does not know."""
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not data.startswith(TIFF):
            raise
        return None


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


def read_header(data: bytes) -> Header:
    """Read what stands before an image's pixels.

    Raises:
        UnreadableImage: It is no image of a known format, or broken.
    """
    with _silent_pillow():
        if data.startswith(NPY):
            shape, _, dtype, _ = npy_header(data)
            height, width, channels = (*shape, 1, 1, 1)[:3]
            check_size(height, width, channels)
            return Header("NPY", _mode_of(channels), width, height, 8 * dtype.itemsize, 1, 1, False, None)
        image = _open(data)
        if image is None:
            height, width, channels, bits = tiff_header(data)
            return Header("TIFF", _mode_of(channels), width, height, bits, 1, 1, False, None)
        frames, bits = getattr(image, "n_frames", 1), _bits(image, data)
        return Header(
            image.format or "", image.mode, image.width, image.height, bits, frames,
            _orientation(image) if image.format != "PNG" else 1,
            "A" in image.mode or "transparency" in image.info, image.info.get("icc_profile"),
        )  # fmt: skip


def _mode_of(channels: int) -> str:
    """Return what Pillow would call them; it has no words for most."""
    return {1: "L", 3: "RGB"}.get(channels, "")


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


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel in the file; Pillow shows most colours as 8."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,)), default=8)
    if isinstance(image, PpmImageFile) and isinstance(levels := image.tile[0].args, tuple):
        return 16 if int(levels[1]) > 255 else 8
    return 16 if image.mode.startswith("I;16") else {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _has_8_bits(image: Image.Image, data: bytes) -> bool:
    """Say whether Pillow loses nothing of an image's colours; of formats that are not known here, nobody knows."""
    return image.format in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM") and _bits(image, data) <= 8


def _needs_tifffile(image: Image.Image, wanted: PixelFormat) -> bool:
    """Say whether Pillow would lose channels or bits of a TIFF."""
    if image.format != "TIFF":
        return False
    if wanted.channels not in (1, 3) and image.mode not in WITH_ALPHA.get(wanted.channels, ()):
        return True
    return wanted.bits == 16 and image.mode in COLOURS and not _has_8_bits(image, b"")


def _deep_colours(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Read colours of 16 bits as they are stored."""
    if image.format == "PNG" and getattr(image, "n_frames", 1) == 1 and b"eXIf" not in data:
        if (decoder := FAST_DECODERS.get("PNG")) is None:
            raise UnreadableImage("has colours of 16 bits, which need torchcodec (pip install torchcodec)")
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decoder(raw, mode="UNCHANGED", output_dtype=torch.uint16).permute(1, 2, 0).numpy()
    raise UnreadableImage(
        f"its {image.format} colours may have more than 8 bits, and cannot be read; save it as plain PNG, TIFF or .npy"
    )


def to_pixels(image: Image.Image, wanted: PixelFormat = RGB) -> Pixels:
    """Turn a Pillow image of any mode into pixels; the first frame is taken."""
    with _silent_pillow():
        wide = image.mode.startswith("I;16") or (
            image.mode == "I" and image.format == "PPM"
        )  # Pillow scales PPM to 16 bits
        if image.mode in ("I", "F") and not wide:
            raise UnreadableImage("its 32-bit pixels have no fixed range; save it with 8 or 16 bits")
        if wanted.exif == "apply" and 2 <= _orientation(image) <= 8:
            image = ImageOps.exif_transpose(image)
        if wide:  # Pillow's own conversion clips at 255
            array = np.asarray(image).astype(np.uint16)
        elif wanted.channels in (1, 3):
            array = np.array(image.convert("L" if wanted.channels == 1 and image.mode == "L" else "RGB"))
        else:
            array = np.array(_with_all_channels(image))
    return fit(array if array.ndim == 3 else array[:, :, None], wanted)


def _with_all_channels(image: Image.Image) -> Image.Image:
    """Return gray or colours, with alpha where there is any; inks and luminance become RGB."""
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if is_gray else "RGBA")
    return image if image.mode == "RGBX" else image.convert("L" if is_gray else "RGB")


PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What a stranger may have decoded: Pillow starts other programs for some of the other formats."""
MAX_SCANS = 100
"""Of a JPEG. Each goes over the whole image, so a small file with thousands of them would take hours; usual are 10."""


def check_picture(data: bytes, max_pixels: int) -> None:
    """Refuse a stranger's image that would take much to decode, by its header alone.

    Raises:
        UnreadableImage: It is neither of PICTURES nor a .npy file, or has too many pixels or scans.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow(max_pixels):
        if data.startswith(NPY):  # which holds its pixels as they are
            return
        image = Image.open(io.BytesIO(data), formats=PICTURES)
        if image.width * image.height > max_pixels:
            raise UnreadableImage(f"has {image.width} x {image.height} pixels; at most {max_pixels:,} are taken")
        if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
            raise UnreadableImage(f"has more than {MAX_SCANS} scans; save it as a plain JPEG")
