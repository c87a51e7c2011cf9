"""Files that people send and that are not taken, known by how they begin, so that the answer can say what to do."""

from __future__ import annotations

TAKEN = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or .npy"
BETTER = "save it as a plain JPEG or PNG"
BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC",
    b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF", b"crx ": "Canon's CR3",
    b"isom": "MP4", b"mp42": "MP4", b"qt  ": "QuickTime",
}  # fmt: skip
"""Of the container that begins with the size and the word ftyp, with what it holds."""
MAGICS = {
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"%PDF": "PDF", b"8BPS": "Photoshop's PSD", b"<svg": "SVG",
    b"PK\3\4": "a ZIP archive",
}  # fmt: skip
BASE64 = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK", b"data:image/")
"""JPEG, PNG, GIF, WebP and TIFF as text, and what browsers write before it."""


def name_foreign(file: bytes) -> str | None:
    """Say what a file is that is not taken, and what to send instead; None where there is nothing to say."""
    begin = file[:32]
    kind = BRANDS.get(begin[8:12]) if begin[4:8] == b"ftyp" else None
    kind = kind or next((name for magic, name in MAGICS.items() if begin.startswith(magic)), None)
    if kind is not None:
        return f"is {kind}, which is not taken; save it as {TAKEN}"
    if begin.lstrip(b" \t\r\n\"'").startswith(BASE64):
        return f"is base64 text; decode it, and send the bytes of the file: {TAKEN}"
    return None
