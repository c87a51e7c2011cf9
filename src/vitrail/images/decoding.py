"""The bytes of an image file turned into pixels, the same whichever decoder is installed."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from vitrail.files import read_regular
from vitrail.images.array_files import NPY, npy_header, read_npy
from vitrail.images.bmp import is_run_length, read_run_length
from vitrail.images.containers import (
    JPEG_BEGINS,
    filled,
    is_last_block_rich,
    png_has_exif,
    png_is_whole,
    seems_turned,
    webp_is_whole,
)
from vitrail.images.pixels import MAX_PIXELS, RGB, Exif, PixelFormat, Pixels, UnreadableImage, check_size, fit
from vitrail.images.tiff import BEGINS, MOST_PAGES, ORIENTATION, read_tags, read_tiff, reader_of

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"), "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"), "WEBP": (".webp",), "AVIF": (".avif",), "GIF": (".gif",), "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "NPY": (".npy",),
}  # fmt: skip
"""The formats that are read, whoever sends the file and whatever it is called, and the endings of their files."""
OPENED = tuple(form for form in ENDINGS if form not in ("MPO", "NPY"))
"""What Pillow is asked to open. It knows more, and starts other programs for some of that."""
STDERR = 2
READ = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM and .npy"
NOT_READ = (
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".ico", ".tga", ".eps", ".psd", ".svg", ".exr", ".hdr", ".dds",
    ".pcx", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
"""Endings of images of other formats, which are not read."""
OTHERS = (
    (b"%!PS", "EPS"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"%PDF", "PDF"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\xff\x0a", "JPEG XL"), (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"), (b"<svg", "SVG"), (b"DDS ", "DDS"), (b"v/1\1", "OpenEXR"), (b"qoif", "QOI"), (b"icns", "ICNS"),
    (b"PK\3\4", "a ZIP archive"), (b"\x1f\x8b", "gzip"), (b"<!DOCTYPE", "HTML"), (b"<html", "HTML"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
)  # fmt: skip
"""How files begin that are often found in the place of images, and what they are."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TGA_ENDS = b"TRUEVISION-XFILE.\0"
MAX_FILE = 2**31
"""Bytes of an image's file; as many pixels as are read, in 16 bits, take no more."""

FAST_DECODERS: dict[str | None, Any] = {}
DECODER: Literal["torchcodec", "pillow"] = "pillow"
"""What decodes JPEG, and whole PNG and WebP; all else is Pillow's, which has the last word on what is readable."""
try:
    from torchcodec.decoders import decode_jpeg, decode_png, decode_webp  # type: ignore[reportPrivateImportUsage]

    FAST_DECODERS = {"JPEG": decode_jpeg, "PNG": decode_png, "WEBP": decode_webp}
    DECODER = "torchcodec"
except (ImportError, OSError, RuntimeError):
    # not installed, or built for another torch: Pillow gives the same pixels, more slowly
    pass

COLOURS = ("LA", "RGB", "RGBA", "RGBX")
"""Pillow's modes that stand for colours of 16 bits too."""
DEEP_GRAY_WITH_ALPHA = b"\x10\x04"
"""Bits and kind of colours of a PNG that Pillow opens as RGBA."""
# Pillow warns of odd metadata that does not touch the pixels. `catch_warnings` swaps global state, which two threads of
# a server may not do at once; header reading is short, and torchcodec decodes outside.
_PILLOW = threading.RLock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # which else prints what becomes a reason here


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
        max_pixels: What to call the limit where Pillow's own is passed.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
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
        if data.startswith(BEGINS):
            tags = read_tags(data, wanted.channels + 1)
            if reader_of(tags, wanted) == "tifffile":
                return fit(read_tiff(data, tags, wanted), wanted, has_alpha=tags.has_alpha)
            return to_pixels(_open(data), wanted)
        image = _open(data)
        check_size(image.height, image.width)
        if is_run_length(image):
            return to_pixels(read_run_length(image, data), wanted)
        if image.format == "PNG" and wanted.channels not in (1, 3):
            _mend_key(image, data)
        if wanted.bits == 16 and image.mode in COLOURS and not _has_8_bits(image, data):
            array = _deep_colours(image, data)
            return fit(array, wanted, has_alpha=array.shape[2] in (2, 4))
        decoder = FAST_DECODERS.get(image.format)
        if decoder is None or wanted.channels not in (1, 3) or not _is_plain(image, data, wanted.exif):
            is_deep_gray = image.format == "PNG" and data[24:26] == DEEP_GRAY_WITH_ALPHA
            return to_pixels(image.convert("LA") if is_deep_gray else image, wanted)
    is_gray = wanted.channels == 1 and image.mode == "L"
    try:
        # of colours, each decoder has its own idea of gray
        pixels = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="GRAY" if is_gray else "RGB")
    except RuntimeError:
        # Pillow has the last word, so that what is readable does not depend on the decoder
        return to_pixels(image, wanted)
    return pixels if wanted.is_picture else fit(pixels.permute(1, 2, 0).numpy(), wanted)


def _mend_key(image: Image.Image, data: bytes) -> None:
    """Put right the level of a PNG that stands for what is transparent; Pillow compares it in fewer bits, or in more.

    Raises:
        UnreadableImage: It has 16 bits, of which Pillow's pixels have 8.
    """
    key, bits = image.info.get("transparency"), data[24]
    if key is None or isinstance(key, bytes):  # of a palette
        return
    if bits == 16:
        raise UnreadableImage("has a transparent level of 16 bits; save it with alpha of its own")
    if bits in (2, 4):
        image.info["transparency"] = key * (255 // (2**bits - 1))


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image, of the formats that are read and no other."""
    try:
        return Image.open(io.BytesIO(data), formats=OPENED)
    except UnidentifiedImageError as error:
        if (name := _other_format(data)) is not None:
            raise UnreadableImage(f"holds {name}, which is not read; save it as one of {READ}") from error
        raise UnreadableImage(f"not an image of a known format; read are {READ}") from error


def _other_format(data: bytes) -> str | None:
    """Return what a file is that is not read, where it begins as such files do."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIC:
        return "HEIC"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data.endswith(TGA_ENDS):
        return "TGA"
    begin = data[:64].lstrip()
    return next((name for known, name in OTHERS if data.startswith(known) or begin.startswith(known)), None)


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
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow():
        if data.startswith(NPY):
            shape, _, dtype, _ = npy_header(data)
            height, width, channels = (*shape, 1, 1, 1)[:3]
            check_size(height, width, channels)
            return Header("NPY", _mode_of(channels), width, height, 8 * dtype.itemsize, 1, 1, False, None)
        if data.startswith(BEGINS):
            tags = read_tags(data, MOST_PAGES)
            height, width = tags.upright
            return Header(
                "TIFF", tags.mode, width, height, tags.bits, tags.pages, tags.orientation, tags.has_alpha, tags.profile
            )
        image = _open(data)
        frames, bits = getattr(image, "n_frames", 1), _bits(image, data)
        return Header(
            image.format or "", image.mode, image.width, image.height, bits, frames,
            _orientation(image) if image.format != "PNG" or png_has_exif(data) else 1,
            "A" in image.mode or "transparency" in image.info, image.info.get("icc_profile"),
        )  # fmt: skip


def _mode_of(channels: int) -> str:
    """Return what Pillow would call them; it has no words for most."""
    return {1: "L", 3: "RGB"}.get(channels, "")


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Drop what libjpeg and libpng print of damaged images meanwhile: it names no file, and tears a live line.

    Whatever else is printed to the process's standard error is dropped too, so it is for as long as one image takes.
    Any number of threads may do so at once.
    """
    if not _PRINTING.enter():
        yield
        return
    try:
        yield
    finally:
        _PRINTING.leave()


class _Printing:
    """Where the standard error of this process leads, while some of its threads have nothing printed there."""

    def __init__(self) -> None:
        self._lock, self._inside, self._kept = threading.Lock(), 0, -1

    def enter(self) -> bool:
        """Lead it nowhere, if that can be."""
        with self._lock:
            if not self._inside and not self._lead_away():
                return False
            self._inside += 1
            return True

    def _lead_away(self) -> bool:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
        except OSError:  # no more files may be open
            return False
        try:
            self._kept = os.dup(STDERR)
            os.dup2(nowhere, STDERR)
        except OSError:  # it is closed
            return False
        finally:
            os.close(nowhere)
        return True

    def leave(self) -> None:
        """Lead it back, with the last thread."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                os.dup2(self._kept, STDERR)
                os.close(self._kept)


_PRINTING = _Printing()


def decode_quietly(data: bytes, wanted: PixelFormat = RGB) -> Pixels:
    """Decode as `decode` does, but print nothing.

    Raises:
        UnreadableImage: As of `decode`.
    """
    with nothing_printed():
        return decode(data, wanted)


def _is_plain(image: Image.Image, data: bytes, exif: Exif) -> bool:
    """Say whether torchcodec gives Pillow's pixels or nothing: one whole 8-bit frame that no EXIF entry turns."""
    if getattr(image, "n_frames", 1) != 1:
        return False
    if image.format == "PNG":
        # byte 24 is the bit depth; Pillow would decode the whole file to look for EXIF, so its mere presence must do
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
    if isinstance(image, PpmImageFile) and isinstance(levels := image.tile[0].args, tuple):
        return 16 if int(levels[1]) > 255 else 8
    return 16 if image.mode.startswith("I;16") else {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _has_8_bits(image: Image.Image, data: bytes) -> bool:
    """Say whether Pillow loses nothing of an image's colours; of formats that are not known here, nobody knows."""
    return image.format in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM") and _bits(image, data) <= 8


def _deep_colours(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Read colours of 16 bits as they are stored."""
    odd = ""
    if image.format == "PNG":
        odd = "EXIF" if b"eXIf" in data else "several frames" if getattr(image, "n_frames", 1) != 1 else ""
    if image.format == "PNG" and not odd:
        if (decoder := FAST_DECODERS.get("PNG")) is None:
            raise UnreadableImage("has colours of 16 bits, which need torchcodec (pip install torchcodec)")
        image.load()  # Pillow has the last word here, too
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decoder(raw, mode="UNCHANGED", output_dtype=torch.uint16).permute(1, 2, 0).numpy()
    what = f"has colours of 16 bits beside {odd}" if odd else f"its {image.format} colours may have more than 8 bits"
    raise UnreadableImage(
        f"{what}, which data.bits=16 cannot read; save it as plain PNG, TIFF or .npy, or read all with data.bits=8"
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


def ends_early(data: bytes, pixels: Pixels, wanted: PixelFormat = RGB) -> bool:
    """Say whether libjpeg made up a part of a JPEG's pixels, as it does where their code ends too early.

    Then they change with what is put behind that code; where it is whole, nothing behind it counts.

    Args:
        data: The file.
        pixels: What it was decoded to.
        wanted: As what.
    """
    if not data.startswith(JPEG_BEGINS) or is_last_block_rich(data, pixels):
        return False
    try:
        with _silent_pillow():
            image = _open(filled(data))
        return not torch.equal(to_pixels(image, wanted), pixels)  # by Pillow, as torchcodec prints what it finds odd
    except UnreadableImage:
        return False


MAX_SCANS = 100
"""Of a JPEG. Each goes over the whole image, so a small file with thousands of them would take hours; usual are 10."""


def check_picture(data: bytes, max_pixels: int) -> None:
    """Refuse a stranger's image that would take much to decode, by its header alone.

    Raises:
        UnreadableImage: It is of no format that is read, or has too many pixels or scans.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    with _silent_pillow(max_pixels):
        if data.startswith(NPY):  # which holds its pixels as they are
            return
        if data.startswith(BEGINS):
            height, width = read_tags(data).upright
        else:
            image = _open(data)
            height, width = image.height, image.width
            if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
                raise UnreadableImage(f"has more than {MAX_SCANS} scans; save it as a plain JPEG")
        if width * height > max_pixels:
            raise UnreadableImage(f"has {width} x {height} pixels; at most {max_pixels:,} are taken")
