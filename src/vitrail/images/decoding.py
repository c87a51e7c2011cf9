"""Decode image files to pixels, with torchcodec where it is installed and with Pillow elsewhere, to equal pixels."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from vitrail.files import read_regular
from vitrail.images.array_files import NPY, read_npy, read_npy_header
from vitrail.images.bmp import is_run_length, read_run_length
from vitrail.images.containers import (
    JPEG_BEGINS,
    append_filler,
    is_last_block_rich,
    png_has_exif,
    png_is_whole,
    seems_turned,
    webp_is_whole,
)
from vitrail.images.formats import OPENED, READ, recognise_other_format
from vitrail.images.pixels import (
    MAX_PIXELS,
    RGB,
    Exif,
    PixelFormat,
    Pixels,
    UnreadableImage,
    check_size,
    to_pixel_format,
)
from vitrail.images.silence import nothing_printed
from vitrail.images.tiff import read_tiff
from vitrail.images.tiff_tags import MOST_PAGES, ORIENTATION, TIFF_BEGINS, choose_reader, read_tags

COLOURS = ("LA", "RGB", "RGBA", "RGBX")
"""Modes in which Pillow may hold colours that have 16 bits in the file."""
DEEP_GRAY_WITH_ALPHA = b"\x10\x04"
"""Bit depth and colour type of a PNG that Pillow opens as RGBA, and that is gray with alpha."""
MAX_FILE = 2**31
"""Most bytes of an image's file; as many pixels as are read, in 16 bits, take no more."""
MAX_SCANS = 100
"""Most scans of a JPEG. Each goes over the whole image, so a small file with thousands of them
would take hours; usual are 10."""
# Pillow warns of odd metadata that does not touch the pixels. `catch_warnings` swaps global state,
# which two threads of
# a server may not do at once; header reading is short, and torchcodec decodes outside.
_PILLOW = threading.RLock()


@cache
def fast_decoders() -> dict[str | None, Callable[..., Any]]:
    """Return torchcodec's decoders for JPEG, and for whole PNG and WebP; none where it is not installed.

    Importing torchcodec takes longer than decoding an image, so a process that forks others to
    decode calls this first.
    """
    try:
        from torchcodec.decoders import decode_jpeg, decode_png, decode_webp  # type: ignore[reportPrivateImportUsage]
    except (ImportError, OSError, RuntimeError):
        # not installed, or built for another torch: Pillow gives the same pixels, more slowly
        return {}
    return {"JPEG": decode_jpeg, "PNG": decode_png, "WEBP": decode_webp}


def decoder_name() -> Literal["torchcodec", "pillow"]:
    """Return which library decodes the common formats on this machine; both give equal pixels."""
    return "torchcodec" if fast_decoders() else "pillow"


@cache
def _quiet_pillow_log() -> None:
    """Keep Pillow's log from being printed: what matters of it becomes the reason of an UnreadableImage."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(path: str | Path) -> bytes:
    """Read the file of an image, which may not be a device, a pipe or larger than MAX_FILE.

    Raises:
        OSError: It cannot be read, or is none.
    """
    return read_regular(path, MAX_FILE)


@contextmanager
def _silent_pillow(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Hold back Pillow's warnings, and turn whatever it raises on broken files into UnreadableImage.

    Args:
        max_pixels: The limit that is named where Pillow's own limit is exceeded.
    """
    _quiet_pillow_log()
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"has more than {max_pixels:,} pixels") from error
        # plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, ...
        except Exception as error:
            raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def decode(data: bytes, wanted: PixelFormat = RGB) -> Pixels:
    """Decode an image file, to the same pixels whichever decoder is installed.

    Args:
        data: The file's bytes; the format is found from them.
        wanted: Channels, bits and whether EXIF turns the image; `pixels.to_pixel_format` has the
            rules.

    Raises:
        UnreadableImage: Broken, truncated, no image, larger than MAX_PIXELS, or not convertible to
            `wanted`.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        if data.startswith(NPY):
            return to_pixel_format(read_npy(data, wanted.channels), wanted)
        if data.startswith(TIFF_BEGINS):
            return _decode_tiff(data, wanted)
        image = _open(data)
        check_size(image.height, image.width)
        if is_run_length(image):
            return to_pixels(read_run_length(image, data), wanted)
        if image.format == "PNG" and wanted.channels not in (1, 3):
            _mend_transparency(image, data)
        if wanted.bits == 16 and image.mode in COLOURS and not _has_8_bits(image, data):
            colours = _deep_colours(image, data)
            return to_pixel_format(colours, wanted, has_alpha=colours.shape[2] in (2, 4))
        decoder = fast_decoders().get(image.format)
        if (
            decoder is None
            or wanted.channels not in (1, 3)
            or not _is_safe_for_torchcodec(image, data, wanted.exif)
        ):
            if image.format == "PNG" and data[24:26] == DEEP_GRAY_WITH_ALPHA:
                return to_pixels(image.convert("LA"), wanted)
            return to_pixels(image, wanted)
    # torchcodec decodes outside of Pillow's lock; of colours, each decoder has its own idea of gray
    mode = "GRAY" if wanted.channels == 1 and image.mode == "L" else "RGB"
    try:
        pixels = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    except RuntimeError:
        # Pillow has the last word, so that what is readable does not depend on the decoder
        return to_pixels(image, wanted)
    if wanted.is_picture:
        return pixels
    return to_pixel_format(pixels.permute(1, 2, 0).numpy(), wanted)


def decode_quietly(data: bytes, wanted: PixelFormat = RGB) -> Pixels:
    """Decode as `decode` does, and print nothing where libjpeg or libpng would.

    Raises:
        UnreadableImage: As of `decode`.
    """
    with nothing_printed():
        return decode(data, wanted)


def _decode_tiff(data: bytes, wanted: PixelFormat) -> Pixels:
    tags = read_tags(data, wanted.channels + 1)
    if choose_reader(tags, wanted) == "tifffile":
        return to_pixel_format(read_tiff(data, tags, wanted), wanted, has_alpha=tags.has_alpha)
    return to_pixels(_open(data), wanted)


def _mend_transparency(image: Image.Image, data: bytes) -> None:
    """Scale the transparent gray level of a PNG to 8 bits; Pillow compares it in fewer bits, or in more.

    Raises:
        UnreadableImage: It has 16 bits, of which Pillow's pixels have 8.
    """
    level, bits = image.info.get("transparency"), data[24]
    if level is None or isinstance(level, bytes):  # bytes are the alpha of a palette
        return
    if bits == 16:
        raise UnreadableImage("has a transparent level of 16 bits; save it with alpha of its own")
    if bits in (2, 4):
        image.info["transparency"] = level * (255 // (2**bits - 1))


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image, of the formats that are read and no other."""
    try:
        return Image.open(io.BytesIO(data), formats=OPENED)
    except UnidentifiedImageError as error:
        name = recognise_other_format(data)
        if name is not None:
            raise UnreadableImage(
                f"holds {name}, which is not read; save it as one of {READ}"
            ) from error
        raise UnreadableImage(f"not an image of a known format; read are {READ}") from error


class Header(NamedTuple):
    """The header of an image file: format, size, mode, and metadata that concerns the pixels."""

    format: str
    """Name of the format, as Pillow has it; NPY for numpy's own."""
    mode: str
    """Colour mode as Pillow names it; empty where it has no name."""
    width: int
    height: int
    bits: int
    """Bits of a channel in the file."""
    frames: int
    orientation: int
    """EXIF orientation from 1 to 8; 1 is upright, and 0 stands for EXIF that is too broken to
    say."""
    has_alpha: bool
    profile: bytes | None
    """ICC colour profile."""


def read_header(data: bytes) -> Header:
    """Read an image file's header: format, size, mode, and metadata that concerns the pixels.

    Raises:
        UnreadableImage: It is no image of a known format, or broken.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        if data.startswith(NPY):
            return _read_npy_header(data)
        if data.startswith(TIFF_BEGINS):
            return _read_tiff_header(data)
        image = _open(data)
        frames = getattr(image, "n_frames", 1)  # first, as counting them moves through the file
        # Pillow would decode a whole PNG to look for EXIF
        is_upright = image.format == "PNG" and not png_has_exif(data)
        orientation = 1 if is_upright else _orientation(image)
        return Header(
            format=image.format or "",
            mode=image.mode,
            width=image.width,
            height=image.height,
            bits=_bits(image, data),
            frames=frames,
            orientation=orientation,
            has_alpha="A" in image.mode or "transparency" in image.info,
            profile=image.info.get("icc_profile"),
        )


def _read_npy_header(data: bytes) -> Header:
    shape, _, dtype, _ = read_npy_header(data)
    height, width, channels = (*shape, 1, 1, 1)[:3]
    check_size(height, width, channels)
    # Pillow has no mode for other numbers of channels
    mode = {1: "L", 3: "RGB"}.get(channels, "")
    return Header("NPY", mode, width, height, 8 * dtype.itemsize, 1, 1, False, None)


def _read_tiff_header(data: bytes) -> Header:
    tags = read_tags(data, MOST_PAGES)
    height, width = tags.upright
    return Header(
        format="TIFF",
        mode=tags.mode,
        width=width,
        height=height,
        bits=tags.bits,
        frames=tags.pages,
        orientation=tags.orientation,
        has_alpha=tags.has_alpha,
        profile=tags.profile,
    )


def _is_safe_for_torchcodec(image: Image.Image, data: bytes, exif: Exif) -> bool:
    """Say whether torchcodec gives Pillow's pixels or nothing: one whole 8-bit frame that no EXIF entry turns."""
    if getattr(image, "n_frames", 1) != 1:
        return False
    if image.format == "PNG":
        # byte 24 is the bit depth; Pillow would decode the whole file to look for EXIF, so its mere
        # presence must do
        return data[24] <= 8 and exif == "ignore" and b"eXIf" not in data and png_is_whole(data)
    if image.format == "WEBP" and not webp_is_whole(data):
        return False
    if image.format == "JPEG" and seems_turned(data):
        return False
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
    if isinstance(image, PpmImageFile):
        arguments = image.tile[0].args
        if isinstance(arguments, tuple):
            return 16 if int(arguments[1]) > 255 else 8
    if image.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _has_8_bits(image: Image.Image, data: bytes) -> bool:
    """Say whether Pillow loses nothing of an image's colours; of formats that are not known here, nobody knows."""
    return (
        image.format in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM")
        and _bits(image, data) <= 8
    )


def _deep_colours(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Read colours of 16 bits as they are stored."""
    what = ""
    if image.format != "PNG":
        what = f"its {image.format} colours may have more than 8 bits"
    elif b"eXIf" in data:
        what = "has colours of 16 bits beside EXIF"
    elif getattr(image, "n_frames", 1) != 1:
        what = "has colours of 16 bits beside several frames"
    if what:
        raise UnreadableImage(
            f"{what}, which data.bits=16 cannot read; save it as plain PNG, TIFF or .npy, or read "
            "all with data.bits=8"
        )
    decoder = fast_decoders().get("PNG")
    if decoder is None:
        raise UnreadableImage(
            "has colours of 16 bits, which need torchcodec (pip install torchcodec)"
        )
    image.load()  # Pillow has the last word here, too
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decoder(raw, mode="UNCHANGED", output_dtype=torch.uint16).permute(1, 2, 0).numpy()


def to_pixels(image: Image.Image, wanted: PixelFormat = RGB) -> Pixels:
    """Convert a Pillow image of any mode to pixels; of several frames, the first is taken."""
    with _silent_pillow():
        # Pillow scales PPM to 16 bits
        is_deep_gray = image.mode.startswith("I;16") or (
            image.mode == "I" and image.format == "PPM"
        )
        if image.mode in ("I", "F") and not is_deep_gray:
            raise UnreadableImage(
                "its 32-bit pixels have no fixed range; save it with 8 or 16 bits"
            )
        if wanted.exif == "apply" and 2 <= _orientation(image) <= 8:
            image = ImageOps.exif_transpose(image)
        if is_deep_gray:
            array = np.asarray(image).astype(np.uint16)  # Pillow's own conversion clips at 255
        elif wanted.channels in (1, 3):
            mode = "L" if wanted.channels == 1 and image.mode == "L" else "RGB"
            array = np.array(image.convert(mode))
        else:
            array = np.array(_with_all_channels(image))
    if array.ndim == 2:
        array = array[:, :, None]
    return to_pixel_format(array, wanted)


def _with_all_channels(image: Image.Image) -> Image.Image:
    """Return gray or colours, with alpha where there is any; inks and luminance become RGB."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        return image.convert(mode + "A")
    if image.mode == "RGBX":
        return image
    return image.convert(mode)


def ends_early(data: bytes, pixels: Pixels, wanted: PixelFormat = RGB) -> bool:
    """Say whether a JPEG is truncated: libjpeg makes up the pixels that are missing, mostly gray.

    Made-up pixels change with the bytes that are appended to the code; those of a whole image do
    not.

    Args:
        data: The file.
        pixels: The pixels that the file was decoded to.
        wanted: The pixel format that it was decoded to.
    """
    if not data.startswith(JPEG_BEGINS) or is_last_block_rich(data, pixels):
        return False
    try:
        with _silent_pillow():
            image = _open(append_filler(data))
        # by Pillow, as torchcodec prints what it finds odd
        return not torch.equal(to_pixels(image, wanted), pixels)
    except UnreadableImage:
        return False


def check_picture(data: bytes, max_pixels: int) -> None:
    """Refuse an untrusted image that would be expensive to decode, by its header alone.

    Raises:
        UnreadableImage: It is of no format that is read, or has too many pixels or scans.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow(max_pixels):
        if data.startswith(NPY):  # which holds its pixels as they are
            return
        if data.startswith(TIFF_BEGINS):
            height, width = read_tags(data).upright
        else:
            image = _open(data)
            height, width = image.height, image.width
            if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
                raise UnreadableImage(f"has more than {MAX_SCANS} scans; save it as a plain JPEG")
        if width * height > max_pixels:
            raise UnreadableImage(
                f"has {width} x {height} pixels; at most {max_pixels:,} are taken"
            )
