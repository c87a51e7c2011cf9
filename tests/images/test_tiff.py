"""TIFF: every number of bits, colours, planes and alpha against what was written, whichever library reads them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from support.images import encode, npy, photo, read, reason
from support.tiff_files import (
    DEFLATE,
    GRAY,
    INKS,
    LAB,
    LZW,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    tiff_file,
)
from vitrail.data.audit.inspect_file import Finding, inspect
from vitrail.images.decoding import check_picture, read_header
from vitrail.images.pixels import PixelFormat

HEIGHT, WIDTH = 21, 29
ORDERS = ("<", ">")


def draw(bits: int, samples: int = 1) -> np.ndarray:
    """Return all levels of so many bits, or as many as there is room for, the darkest and the lightest among them."""
    levels = np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH, samples), dtype=np.int64)
    levels[0, 0], levels[0, 1] = 0, 2**bits - 1
    return levels


def whole(levels: np.ndarray, bits: int) -> np.ndarray:
    """Return levels in the whole range of 16 bits, by the rule of the documentation."""
    return np.round(levels * 65535 / (2**bits - 1)).astype(np.uint16)


def inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """Return what is left of white paper, in 16 bits, without rounding in between."""
    paper = 65535 - inks[:, :, 3:].astype(float)
    return np.round(paper - inks[:, :, :3] * paper / 65535).astype(np.uint16)


def check(data: bytes, expected: np.ndarray, channels: int, within: int = 0) -> None:
    """See that a file is read in 16 bits as expected, and in 8 as the high byte of that."""
    deep, shallow = (read(data, channels, bits).astype(int) for bits in (16, 8))
    assert np.abs(deep - expected).max() <= within
    assert np.array_equal(shallow, deep >> 8)
    assert deep.shape == (HEIGHT, WIDTH, channels)


# What libtiffpic's depth/ has, written anew


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", range(1, 17))
def test_gray_of_every_depth_is_as_light_as_it_was(bits: int, order: str) -> None:
    levels = draw(bits)
    for photometric, expected in ((GRAY, levels), (WHITE_IS_ZERO, 2**bits - 1 - levels)):
        for options in ({}, {"compression": DEFLATE}, {"tile": 16}, {"fill": 2}):
            check(tiff_file(levels, bits, photometric, order=order, **options), whole(expected, bits), 1)
    assert np.array_equal(
        read(tiff_file(levels, bits, order=order)), (whole(levels, bits) >> 8).astype(np.uint8).repeat(3, 2)
    )


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 10, 12, 14, 16])
def test_colours_of_every_depth_are_as_light_as_they_were(bits: int, order: str, planar: bool) -> None:
    levels = draw(bits, 3)
    for options in ({}, {"compression": DEFLATE}, {"tile": 16}):
        check(tiff_file(levels, bits, RGB, order=order, planar=planar, **options), whole(levels, bits), 3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 16])
def test_a_palette_of_every_size_gives_its_colours(bits: int, order: str) -> None:
    indices, palette = draw(bits), np.random.default_rng(1).integers(0, 65536, (3, 2**bits))
    data = tiff_file(indices, bits, PALETTE, order=order, palette=palette)
    # Pillow keeps 8 bits of a palette's colours, which are multiplied by 257 as those of any file of 8 bits
    expected = palette.T[indices[:, :, 0]]
    assert np.abs(read(data, 3, 16).astype(int) - expected).max() <= (0 if bits in (6, 16) else 255)
    assert np.array_equal(read(data), expected >> 8)
    coarse = tiff_file(indices, 16, PALETTE, order=order, palette=np.resize(palette >> 8, (3, 65536)))
    assert read(coarse, 3, 16).max() > 255 * 200  # written with 8 bits a colour, as some programs do


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_inks_become_colours_as_in_pillow(bits: int, order: str, planar: bool) -> None:
    inks = draw(bits, 4)
    spot = np.concatenate((inks, draw(bits)), axis=2)  # a fifth ink, or alpha, which is dropped
    for levels, options in (
        (inks, {}),
        (inks, {"compression": DEFLATE}),
        (spot, {"extra": (0,)}),
        (spot, {"extra": (2,)}),
    ):
        data = tiff_file(levels, bits, INKS, order=order, planar=planar, **options)
        if bits == 8:
            expected = np.asarray(Image.fromarray(inks.astype(np.uint8), "CMYK").convert("RGB"))
            assert np.array_equal(read(data), expected)
            assert np.array_equal(read(data, 3, 16), expected.astype(np.uint16) * 257)
        else:
            check(data, inks_to_rgb(whole(inks, bits)), 3, within=1)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_alpha_is_dropped_and_associated_alpha_is_divided_out(bits: int, order: str, planar: bool) -> None:
    for photometric, colours in ((RGB, 3), (GRAY, 1)):
        levels = draw(bits, colours + 1)
        full = whole(levels, bits).astype(np.int64)
        for kind in (0, 1, 2):
            data = tiff_file(levels, bits, photometric, order=order, planar=planar, extra=(kind,))
            if kind == 0 and photometric == GRAY:  # two channels, of which nobody says that one is alpha
                assert reason(data, 1) == "has 2 channels, and 1 are wanted (data.channels)"
                check(data, full, 2)
                continue
            expected = full[:, :, :-1]
            if kind == 1:
                most = 255 if bits == 8 else 65535
                stored, alpha = (levels if bits == 8 else full)[:, :, :-1], (levels if bits == 8 else full)[:, :, -1:]
                straight = np.minimum(stored * most // np.maximum(alpha, 1), most) * (alpha > 0)
                expected = straight * (257 if bits == 8 else 1)
            check(data, expected, colours)
            if not (bits == 8 and kind == 1):  # Pillow makes alpha of 0 colourless in the same way
                check(data, np.concatenate((expected, full[:, :, -1:]), axis=2), colours + 1)


def test_samples_of_a_kind_that_is_not_told_are_unsigned() -> None:
    for bits in (8, 12, 16):
        for count, photometric in ((1, GRAY), (3, RGB)):
            levels = draw(bits, count)
            check(tiff_file(levels, bits, photometric, kind=4), whole(levels, bits), count)


def test_colours_without_a_word_about_their_fourth_channel_are_read() -> None:
    levels = draw(8, 4)
    check(tiff_file(levels, 8, RGB), whole(levels, 8)[:, :, :3], 3)
    levels = draw(16, 4)
    check(tiff_file(levels, 16, RGB), levels[:, :, :3], 3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_any_number_of_channels_is_read_together_apart_and_from_pages(bits: int, order: str) -> None:
    levels = draw(bits, 5)
    for options in ({"extra": (0,) * 4}, {"planar": True}, {"pages": 5}, {"pages": 5, "compression": DEFLATE}):
        data = tiff_file(levels, bits, order=order, **options)
        check(data, whole(levels, bits), 5)
        if "pages" in options:  # the first page is all there is where one or three channels are wanted
            check(data, whole(levels, bits)[:, :, :1], 1)
        else:
            assert reason(data) == "has 5 channels, and 3 are wanted (data.channels)"
    three = tiff_file(levels[:, :, :3], bits, order=order, pages=3)
    check(three, whole(levels, bits)[:, :, :1].repeat(3, 2), 3)
    mixed = tiff_file(levels, bits, RGB, order=order, extra=(0, 2))
    assert reason(mixed) == "has 5 channels, and 3 are wanted (data.channels)"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_stored_turned_is_read_upright(orientation: int, bits: int) -> None:
    levels = draw(bits, 3)
    for planar in (False, True):
        data = tiff_file(levels, bits, RGB, planar=planar, tags={274: orientation})
        upright = Image.fromarray((whole(levels, bits) >> 8).astype(np.uint8))
        how = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
        expected = np.asarray(upright if how is None else upright.transpose(Image.Transpose(how)))
        assert np.array_equal(read(data), expected)
        assert np.array_equal(read(data, 3, 16) >> 8, expected)
        header = read_header(data)
        assert (header.height, header.width, header.orientation) == (*expected.shape[:2], orientation)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_samples_that_are_not_packed_are_no_differences(bits: int, planar: bool) -> None:
    levels = draw(bits, 3)
    check(tiff_file(levels, bits, RGB, planar=planar, tags={317: 2}), whole(levels, bits), 3)


@pytest.mark.parametrize("samples", [3, 4])
def test_webp_in_a_tiff_is_not_pillows(samples: int) -> None:
    pytest.importorskip("imagecodecs")
    levels, stream = draw(8, samples).astype(np.uint8), io.BytesIO()
    tifffile.imwrite(stream, levels, photometric="rgb", compression="webp", compressionargs={"lossless": True})
    assert np.array_equal(read(stream.getvalue())[:, :, :3], levels[:, :, :3])


# What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff_file(draw(8), 8, kind=2), "is int8; save it as uint8 or uint16, in the range of that type"),
        (tiff_file(draw(8, 3), 8, RGB, kind=2), "is int8; save it as"),
        (tiff_file(draw(16), 16, kind=2, order=">"), "is int16; save it as"),
        (tiff_file(draw(12), 12, kind=2), "is int12; save it as"),
        (tiff_file(draw(16), 16, kind=3), "is float16; save it as"),
        (tiff_file(draw(31), 32, kind=3), "is float32; save it as"),
        (tiff_file(draw(24), 24), "is uint24; save it as uint8 or uint16, in the range of that type"),
        (tiff_file(draw(31), 32), "is uint32; save it as"),
        (tiff_file(draw(24, 3), 24, RGB, planar=True), "is uint24; save it as"),
        (tiff_file(draw(31, 3), 32, RGB, order=">"), "is uint32; save it as"),
        (tiff_file(draw(8, 3), 8, LAB), "holds its colours as CIELab; save it as gray or RGB"),
        (tiff_file(draw(8, 3), 8, 32803), "holds its colours as a colour filter array; save it as"),
        (tiff_file(draw(8, 3), 8, 77), "holds its colours as kind 77; save it as"),
        (tiff_file(draw(8, 3), 8, YCBCR), "holds its colours as YCbCr of a kind that is not read"),
        (tiff_file(draw(8, 2), 8, RGB), "has 2 channels where its colours have 3"),
        (tiff_file(draw(8, 6), 8, INKS, extra=(0, 0)), "has 2 channels beside its inks; save it as gray or RGB"),
        (tiff_file(draw(8, 5), 8, INKS, extra=(1,)), "has 1 channel beside its inks; save it as"),
        (tiff_file(draw(8, 4), 8, INKS, tags={332: 2}), "holds other inks than cyan, magenta, yellow and black; save"),
        (tiff_file(draw(8, 3), 8, RGB, tags={254: 1}), "begins with a preview, as cameras' raw files do; save it as"),
        (tiff_file(draw(8, 3), 8, RGB, tags={50706: (1, 4)}), "begins with a preview, as cameras' raw files do"),
        (tiff_file(draw(8, 2), 8, PALETTE, extra=(2,)), "has 1 channel beside its palette; save it as"),
        (tiff_file(draw(8, 3), 8, RGB, tags={258: (8, 8, 16)}), "has channels of different bits (8, 8, 16)"),
        (tiff_file(draw(8, 3), 8, RGB, tags={339: (1, 1, 2)}), "has channels of different format (1, 1, 2)"),
        (tiff_file(draw(8), 8, tags={32997: 20}), "is a volume of 20 layers; save one of them"),
        (tiff_file(draw(12), 12, tags={317: 2}), "packs samples of 12 bits in a way that is not read; save it with 8"),
        (
            tiff_file(draw(8), 8, compression=32773, tags={317: 2}),
            "holds differences packed by PackBits, which programs",
        ),
        (tiff_file(draw(12), 12, tags={257: 999}), "is cut off, or has pieces that were never written"),
        (tiff_file(draw(16), 16, PALETTE, palette=np.zeros((3, 9), int)), "has colours that its palette lacks"),
    ],
)
def test_what_has_no_known_scale_or_colours_is_refused_with_the_reason(data: bytes, message: str) -> None:
    for channels, bits in ((3, 8), (1, 16), (5, 8)):
        assert reason(data, channels, bits).startswith(message)
    found = inspect("x.tif", data)
    assert Finding.UNREADABLE in found.findings
    assert found.reason.startswith(message)


def test_a_tiff_without_a_size_or_a_page_is_refused() -> None:
    assert reason(b"II*\0\0\0\0\0") == "is a TIFF without an image"
    assert reason(tiff_file(draw(8), 8).replace(b"\x06\x01\x03\0", b"\xff\xff\x03\0")) == "its TIFF tag 262 is missing"
    assert reason(tiff_file(draw(8), 8).replace(b"\x01\x01\x03\0", b"\xff\xff\x03\0")) == "its TIFF tag 257 is missing"


# Whichever library is installed


FILES: dict[str, bytes] = {}
for _order in ORDERS:
    for _bits in (1, 2, 4, 6, 8, 10, 12, 14, 16):
        for _photometric, _samples, _extra in (
            (GRAY, 1, ()), (WHITE_IS_ZERO, 1, ()), (RGB, 3, ()), (RGB, 4, (1,)), (RGB, 4, (2,)), (GRAY, 2, (1,)),
            (GRAY, 2, (2,)), (INKS, 4, ()), (GRAY, 5, (0,) * 4),
        ):  # fmt: skip
            for _planar in {False, _samples > 1}:
                _name = f"{_order} {_bits} bits, colours {_photometric} of {_samples} {_extra} planar={_planar}"
                FILES[_name] = tiff_file(
                    draw(_bits, _samples), _bits, _photometric, order=_order, planar=_planar, extra=_extra
                )
FILES["LZW"] = encode(photo(), "TIFF", compression="tiff_lzw")
FILES["JPEG"] = encode(photo(), "TIFF", compression="jpeg")
FILES["LZW of 12 bits"] = tiff_file(draw(12), 12, compression=LZW)
FILES["LZW of 16-bit colours"] = tiff_file(draw(16, 3), 16, RGB, compression=LZW)

READ_THEM = """
import hashlib, json, sys
for name in sys.argv[3:]:
    sys.modules[name] = None
import numpy as np
from vitrail.images.decoding import decode
from vitrail.images.pixels import PixelFormat, UnreadableImage
found, files = {}, np.load(sys.argv[1])
for name in files:
    for channels, bits in ((3, 8), (3, 16), (1, 8), (5, 8)):
        try:
            pixels = decode(files[name].tobytes(), PixelFormat(channels, bits)).numpy()
            found[f"{name} {channels} {bits}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        except UnreadableImage as error:
            found[f"{name} {channels} {bits}"] = f"refused: {error}"
open(sys.argv[2], "w").write(json.dumps(found))
"""


@pytest.mark.thorough
def test_the_pixels_or_the_refusal_do_not_depend_on_the_libraries(tmp_path: Path) -> None:
    np.savez(tmp_path / "files.npz", **{name: np.frombuffer(data, np.uint8) for name, data in FILES.items()})
    found = []
    for number, without in enumerate(((), ("imagecodecs",), ("tifffile", "imagecodecs"))):
        answers = tmp_path / f"{number}.json"
        subprocess.run(
            [sys.executable, "-c", READ_THEM, str(tmp_path / "files.npz"), str(answers), *without], check=True
        )
        found.append(json.loads(answers.read_text()))
    everything, without_imagecodecs, pillow_alone = found
    needs = "(pip install tifffile)", "(pip install imagecodecs)"
    counts = {"same": 0, "needs tifffile": 0, "needs imagecodecs": 0}
    for name, answer in everything.items():
        for other in (without_imagecodecs[name], pillow_alone[name]):
            if other.endswith(needs):
                counts["needs tifffile" if other.endswith(needs[0]) else "needs imagecodecs"] += 1
            else:
                assert other == answer, name
                counts["same"] += 1
        if name.startswith("< 8 bits, colours 2 of 3") and "planar=False 3" in name:
            assert not pillow_alone[name].startswith("refused")  # what most people have needs nothing else
    assert min(counts.values()) > 0


# Elsewhere


def test_what_predict_reads_is_taken_from_strangers_too() -> None:
    for data in (tiff_file(draw(16, 5), 16, extra=(0,) * 4), tiff_file(draw(12), 12), npy(draw(8, 5).astype(np.uint8))):
        check_picture(data, 10**6)
    with pytest.raises(Exception, match=f"has {WIDTH} x {HEIGHT} pixels; at most 100 are taken"):
        check_picture(tiff_file(draw(16, 5), 16, extra=(0,) * 4), 100)


def test_check_data_tells_what_is_deep_gray_or_transparent_from_the_tags() -> None:
    def findings(data: bytes) -> Finding:
        return inspect("x.tif", data, PixelFormat(3, 8)).findings

    assert findings(tiff_file(draw(12), 12)) == Finding.DEEP | Finding.GRAY
    assert findings(tiff_file(draw(8, 2), 8, extra=(1,))) == Finding.ALPHA | Finding.GRAY
    assert findings(tiff_file(draw(16, 4), 16, RGB, extra=(2,), planar=True)) == Finding.ALPHA | Finding.DEEP
    assert findings(tiff_file(draw(16, 4), 16, INKS)) == Finding.CMYK | Finding.DEEP
    assert findings(tiff_file(draw(8, 3), 8, RGB)) == Finding(0)
    assert findings(tiff_file(draw(8, 2), 8, pages=2)) == Finding.ANIMATED | Finding.GRAY
    assert findings(tiff_file(draw(1), 1)) == Finding.GRAY


def test_tifffile_writes_what_is_read() -> None:
    """The writer of these tests and tifffile agree about what a TIFF is."""
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        levels = draw(bits, 3)
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, levels.astype(dtype), photometric="rgb", compression="zlib", predictor=2)
        check(buffer.getvalue(), whole(levels, bits), 3)
    big = io.BytesIO()
    tifffile.imwrite(big, draw(16).astype(np.uint16)[:, :, 0], photometric="miniswhite", bigtiff=True, byteorder=">")
    check(big.getvalue(), 65535 - draw(16), 1)
