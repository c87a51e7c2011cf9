"""Image formats: which ones are read, their file extensions, and how files of other formats are recognised."""

from __future__ import annotations

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "NPY": (".npy",),
}
"""File extensions of each format that is read. The format itself is found from the bytes, whatever
the file's name."""
OPENED = tuple(form for form in ENDINGS if form not in ("MPO", "NPY"))
"""Formats that Pillow is asked to open. It knows more, and starts other programs for some of
them."""
READ = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM and .npy"
"""The formats that are read, in words."""
NOT_READ = (
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".ico", ".tga", ".eps", ".psd", ".svg", ".exr", ".hdr", ".dds",
    ".pcx", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
"""File extensions of image formats that are not read."""
SIGNATURES = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"<svg", "SVG"),
    (b"DDS ", "DDS"),
    (b"v/1\1", "OpenEXR"),
    (b"qoif", "QOI"),
    (b"icns", "ICNS"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
)
"""First bytes of files that are often found in the place of images, and the format they stand
for."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands behind the `ftyp` of a HEIC file."""
TGA_FOOTER = b"TRUEVISION-XFILE.\0"
"""Last bytes of a TGA file."""


def recognise_other_format(data: bytes) -> str | None:
    """Return the name of a format that is not read, where a file begins or ends as such files do."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        return "HEIC"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data.endswith(TGA_FOOTER):
        return "TGA"
    # text formats may have blanks before their signature
    stripped = data[:64].lstrip()
    for signature, name in SIGNATURES:
        if data.startswith(signature) or stripped.startswith(signature):
            return name
    return None
