"""Small images of every format and pixel mode, and what reading one gives."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vitrail.images.decoding import decode
from vitrail.images.pixels import PixelFormat, UnreadableImage


def photo(height: int = 97, width: int = 131) -> Image.Image:
    """Return something like a photograph: smooth, with edges and a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [
        128 + 100 * np.sin(7 * x + 3 * y),
        128 + 90 * np.cos(5 * y * x + 2),
        255 * ((x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.05),
    ]
    return Image.fromarray(
        np.clip(np.stack(planes, -1) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    )


def pictures() -> list[Image.Image]:
    """Return pictures of many sizes: smooth ones, noise, and one of a single colour."""
    rng = np.random.default_rng(0)
    sizes = [(224, 224), (96, 160), (5, 7), (1, 1), (2, 300)]
    coarse = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size) for size in sizes]
    return [
        *coarse,
        Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)),
        Image.new("RGB", (40, 30), "red"),
    ]


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(mode: str) -> Image.Image:
    image = photo().convert(mode)
    image.putalpha(Image.fromarray(np.tile(np.arange(131, dtype=np.uint8), (97, 1))))
    return image


EIGHT_BIT = {
    "jpeg": encode(photo(), "JPEG"),
    "jpeg 4:4:4": encode(photo(), "JPEG", quality=95, subsampling=0),
    "jpeg progressive": encode(photo(), "JPEG", progressive=True),
    "jpeg gray": encode(photo().convert("L"), "JPEG"),
    "jpeg cmyk": encode(photo().convert("CMYK"), "JPEG"),
    "png": encode(photo(), "PNG"),
    "png gray": encode(photo().convert("L"), "PNG"),
    "png black and white": encode(photo().convert("1"), "PNG"),
    "png palette": encode(photo().quantize(64), "PNG"),
    "png palette, one transparent": encode(photo().quantize(64), "PNG", transparency=0),
    "png rgba": encode(with_alpha("RGB"), "PNG"),
    "png la": encode(with_alpha("L"), "PNG"),
    "webp": encode(photo(), "WEBP"),
    "webp lossless": encode(photo(), "WEBP", lossless=True),
    "webp rgba": encode(with_alpha("RGB"), "WEBP"),
    "webp animated": encode(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)]),
    "png animated": encode(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)]),
    "gif": encode(photo(), "GIF"),
    "gif animated": encode(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    "bmp": encode(photo(), "BMP"),
    "tiff": encode(photo(), "TIFF"),
    "ppm": encode(photo(), "PPM"),
    "pgm": encode(photo().convert("L"), "PPM"),
    "jpeg 1x1": encode(photo(1, 1), "JPEG"),
    "png 1x1": encode(photo(1, 1), "PNG"),
}

PLAIN = {"photometric": "minisblack", "planarconfig": "contig"}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_16(array: np.ndarray, extra: bytes = b"") -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = array.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = [chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def read(data: bytes, channels: int = 3, bits: int = 8) -> np.ndarray:
    """Decode to (h, w, channels)."""
    pixels = decode(data, PixelFormat(channels, bits))
    assert pixels.dtype == (torch.uint8 if bits == 8 else torch.uint16)
    return pixels.permute(1, 2, 0).numpy()


def reason(data: bytes, channels: int = 3, bits: int = 8) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read(data, channels, bits)
    return str(caught.value)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **(PLAIN if pixels.ndim == 3 else {}))
    else:
        Image.fromarray(pixels).save(path)


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "JPEG 2000": encode(photo(), "JPEG2000"), "ICO": encode(photo(), "ICO"), "TGA": encode(photo(), "TGA"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "PDF": encode(photo(), "PDF"), "DDS": encode(photo(), "DDS"),
    "ICNS": encode(photo().resize((128, 128)), "ICNS"), "HTML": b"\n <!DOCTYPE html><html></html>",
    "SVG": b"<svg></svg>",
    "JPEG XL": b"\xff\x0a" + bytes(9), "PSD": b"8BPS" + bytes(30), "DICOM": bytes(128) + b"DICM" + bytes(9),
    "gzip": b"\x1f\x8b" + bytes(9), "a ZIP archive": b"PK\3\4" + bytes(9), "QOI": b"qoif" + bytes(9),
    "OpenEXR": b"v/1\1" + bytes(9), "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip
