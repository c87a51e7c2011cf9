"""torchcodec and Pillow alone on broken files: the same verdict, and the same pixels where there are any."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from support.damaged_images import PNG_BEGINS, compare, pictures, read
from support.forked import python
from support.images import EIGHT_BIT, OTHERS, encode, photo, png_16
from support.runs import TINY
from vitrail.data.audit.scan import check_images
from vitrail.data.folders import list_folder, scan
from vitrail.data.loader import build_eval_loader
from vitrail.data.manifest import list_images
from vitrail.display import Quiet
from vitrail.images import decoding
from vitrail.images.decoding import check_picture, decode, decode_quietly, ends_early
from vitrail.images.formats import OPENED, READ
from vitrail.images.pixels import Bits, Exif, PixelFormat, UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.images.synthetic import draw_photo

needs_torchcodec = pytest.mark.skipif(decoding.decoder_name() != "torchcodec", reason="needs torchcodec")


@needs_torchcodec
@pytest.mark.parametrize("form", pictures())
def test_what_is_readable_does_not_depend_on_the_decoder(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = [outcome for outcome, _ in compare(form, 600)]
    capfd.readouterr()  # libjpeg and libpng say what they think of it
    assert {*outcomes} == {"both read", "both refuse"}


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)


def png(behind: bytes = chunk(b"IEND", b""), wrong: int = 0) -> bytes:
    """Return a PNG of which only what follows the pixels, or their checksum, is odd."""
    whole = encode(photo(), "PNG")
    at = whole.index(b"IDAT") - 4
    end = whole.index(b"IEND") - 4
    size = int.from_bytes(whole[at : at + 4], "big")
    pixels = chunk(b"IDAT", whole[at + 8 : at + 8 + size], wrong)
    return whole[:at] + pixels + whole[at + 12 + size : end] + behind


def exif(kind: int, count: int, order: str) -> bytes:
    """Return EXIF whose orientation, of 6 in its first two bytes, is of a kind and a count that it may not have."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 274, kind, count, 6, 0, 0)


@needs_torchcodec
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "count"), [(3, 1), (3, 0), (1, 0), (4, 1), (4, 0), (3, 3), (0, 1), (200, 2)])
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("rule", ["ignore", "apply"])
def test_exif_that_can_be_read_in_two_ways_turns_nothing(
    rule: Exif, form: str, kind: int, count: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    photo().crop((0, 0, 50, 30)).save(stream, form, exif=exif(kind, count, order))
    wanted = PixelFormat(exif=rule)
    pixels = decode(stream.getvalue(), wanted)
    monkeypatch.setattr(decoding, "fast_decoders", dict)
    torch.testing.assert_close(pixels, decode(stream.getvalue(), wanted), rtol=0, atol=0)
    assert rule == "apply" or pixels.shape == (3, 30, 50)


@needs_torchcodec
def test_a_webp_that_holds_more_than_a_picture_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fast = [], decoding.fast_decoders()["WEBP"]
    monkeypatch.setitem(decoding.fast_decoders(), "WEBP", lambda *given, **how: calls.append(1) or fast(*given, **how))
    for extra, times in (
        ({}, 1),
        ({"exif": exif(3, 1, "<").replace(b"\6", b"\1")}, 0),
        ({"icc_profile": b"x" * 200}, 0),
    ):
        stream = io.BytesIO()
        photo().save(stream, "WEBP", **extra)
        calls.clear()
        decode(stream.getvalue())
        assert len(calls) == times


def small_png(levels: np.ndarray, bits: int, kind: int, key: bytes = b"") -> bytes:
    """Return a PNG of levels (h, w, samples), with those that stand for what is transparent."""
    wide = levels.reshape(len(levels), -1, 1) >> np.arange(bits)[::-1] & 1
    rows = np.packbits(wide.reshape(len(levels), -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, kind, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    keys = chunk(b"tRNS", key) if key else b""
    return PNG_BEGINS + chunk(b"IHDR", header) + keys + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_level_of_a_png_that_is_transparent_is_found_in_all_depths(bits: int) -> None:
    levels = np.random.default_rng(bits).integers(0, 2**bits, (5, 7, 1))
    levels[0, 0] = 2**bits - 2
    data = small_png(levels, bits, 0, struct.pack(">H", 2**bits - 2))
    gray, alpha = decode(data, PixelFormat(channels=2)).numpy()
    assert np.array_equal(gray, levels[:, :, 0] * (255 // (2**bits - 1)))
    assert np.array_equal(alpha, np.where(levels[:, :, 0] == 2**bits - 2, 0, 255))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "samples"), [(0, 1), (2, 3)])
def test_a_transparent_level_of_16_bits_is_refused_where_alpha_is_wanted(kind: int, samples: int, bits: Bits) -> None:
    data = small_png(np.full((5, 7, samples), 65279), 16, kind, struct.pack(">H", 65279) * samples)
    with pytest.raises(UnreadableImage, match="has a transparent level of 16 bits; save it with alpha of its own"):
        decode(data, PixelFormat(samples + 1, bits))
    assert int(decode(data).min()) == 254


@needs_torchcodec
def test_gray_and_alpha_of_16_bits_are_two_channels_at_8_bits_too() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (5, 7, 2))
    data = small_png(levels, 16, 4)
    assert np.array_equal(decode(data, PixelFormat(2, 16)).numpy(), levels.transpose(2, 0, 1))
    assert np.array_equal(decode(data, PixelFormat(2)).numpy(), levels.transpose(2, 0, 1) >> 8)
    for bits in (8, 16):
        with pytest.raises(UnreadableImage, match="has 2 channels, and 4 are wanted"):
            decode(data, PixelFormat(4, bits))


@needs_torchcodec
@pytest.mark.parametrize(
    "data",
    [
        png(), png(b""), png(chunk(b"tEXt", b"date\0today") + chunk(b"IEND", b"")), png(chunk(b"IEND", b"", wrong=1)),
        png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))) + chunk(b"IEND", b"")),
        png(chunk(b"iCCP", b"") + chunk(b"IEND", b"")), png(chunk(b"fcTL", b"x") + chunk(b"IEND", b"")),
        png(chunk(b"tEXt", b"x", wrong=7) + chunk(b"IEND", b"")), png(b"\xff\xff\xff\xfftEXt"), png(b"garbage"),
        png(chunk(b"IEND", b"") + b"garbage"), png(wrong=1), png(chunk(b"IDAT", b"more") + chunk(b"IEND", b"")),
        EIGHT_BIT["jpeg"] + b"garbage", EIGHT_BIT["jpeg"][:-2], EIGHT_BIT["jpeg"][:-300] + b"\xff\xd9",
        EIGHT_BIT["webp"] + b"garbage", EIGHT_BIT["webp"][:-9], EIGHT_BIT["gif"] + b"garbage", EIGHT_BIT["gif"][:-9],
    ],
    ids=range(20),
)  # fmt: skip
def test_damage_behind_the_pixels_and_wrong_sums_are_judged_alike(data: bytes, capfd: pytest.CaptureFixture) -> None:
    for channels, bits in ((3, 8), (1, 8), (4, 8), (3, 16)):
        fast, alone = (read(data, fast, PixelFormat(channels, bits)) for fast in (True, False))
        assert isinstance(fast, str) == isinstance(alone, str), (fast, alone)
        assert fast == alone if isinstance(fast, str) else torch.equal(fast, alone)
    capfd.readouterr()


@needs_torchcodec
def test_a_plain_png_is_torchcodecs_and_an_odd_one_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setitem(
        decoding.fast_decoders(),
        "PNG",
        lambda data, mode: asked.append(mode) or torch.zeros(3, 2, 2, dtype=torch.uint8),
    )
    decode(png())
    decode(png(chunk(b"tEXt", b"date\0today") + chunk(b"IEND", b"")))
    assert asked == ["RGB", "RGB"]
    decode(png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>") + chunk(b"IEND", b"")))
    assert len(asked) == 2


@needs_torchcodec
def test_a_png_of_16_bits_that_pillow_refuses_is_refused() -> None:
    rows = np.arange(20 * 30 * 3, dtype=np.uint16).reshape(20, 30, 3)
    data = png_16(rows)
    assert decode(data, PixelFormat(3, 16)).shape == (3, 20, 30)
    bad = data[: -len(chunk(b"IEND", b""))] + chunk(b"fcTL", b"x") + chunk(b"IEND", b"")
    for bits in (8, 16):
        with pytest.raises(UnreadableImage, match="fcTL"):
            decode(bad, PixelFormat(3, bits))


# What libjpeg prints


def extraneous() -> bytes:
    """Return a JPEG that is readable, and of which libjpeg prints that its data is corrupt."""
    data = EIGHT_BIT["jpeg"]
    return data[:-2] + b"\0" * 40 + data[-2:]


@needs_torchcodec
def test_nothing_is_printed_by_any_thread_and_all_else_is(capfd: pytest.CaptureFixture[str]) -> None:
    data = extraneous()
    expected = decode(data)
    assert "Corrupt JPEG data" in capfd.readouterr().err
    before = {*os.listdir("/proc/self/fd")}
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(decode_quietly, [data] * 400):
            assert torch.equal(found, expected)
    with pytest.raises(UnreadableImage):
        decode_quietly(b"no image")
    os.write(2, b"still heard\n")
    assert capfd.readouterr().err == "still heard\n"
    assert {*os.listdir("/proc/self/fd")} == before


def test_images_are_decoded_without_a_standard_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(extraneous())
    program = tmp_path / "program.py"
    program.write_text(
        "import os; from pathlib import Path; from vitrail.images.decoding import decode_quietly; os.close(2)\n"
        "print(decode_quietly(Path('a.jpg').read_bytes()).shape, flush=True)\n"
        "os._exit(0)\n"
    )
    assert python(program, cwd=tmp_path).stdout == "torch.Size([3, 97, 131])\n"


@needs_torchcodec
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_prints_nothing(workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.jpg").write_bytes(extraneous())
    loader = build_eval_loader(scan(tmp_path), Preprocess(size=(32, 32)), batch_size=1, workers=workers)
    assert [len(batch.images) for batch in loader] == [1]
    found = check_images(list_images(list_folder(tmp_path, "train", None), None), tmp_path / "known", Quiet(), workers)
    assert found.inspected.all()
    assert capfd.readouterr().err == ""


@pytest.mark.thorough
@needs_torchcodec
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_prints_nothing_in_any_command(workers: int, image_folder: Path, tmp_path: Path) -> None:
    for path in image_folder.glob("*/*/*_[0-2].jpg"):
        data = path.read_bytes()
        path.write_bytes(data[:-2] + b"\0" * 40 + data[-2:])
    tiny = TINY
    settings = (f"data.root={image_folder}", f"data.workers={workers}")
    for words in (
        ("check-data", settings[0], "--output", tmp_path / "out"),
        ("train", tiny, *settings, "data.check=true", "train.epochs=1", "schedule.warmup_epochs=0",
         f"output.root={tmp_path}"),
        ("evaluate", tmp_path / "tiny" / "best.safetensors", *settings, "--report", tmp_path / "report"),
        ("predict", tmp_path / "tiny" / "best.safetensors", image_folder / "val", "--output", tmp_path / "a.csv"),
    ):  # fmt: skip
        done = python("-m", "vitrail", *words)
        assert done.returncode == 0, done.stderr
        assert "JPEG" not in done.stderr
        assert done.stderr.count("warning") == 0, done.stderr


# JPEGs that end too early


WAYS = {
    "baseline": {}, "progressive": {"progressive": True}, "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1}, "best": {"quality": 95, "optimize": True}, "gray": {},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_whose_pixels_run_out_is_known(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        picture = Image.fromarray(draw_photo(number)).reduce(3)
        data = encode(picture.convert("L") if way == "gray" else picture, "JPEG", **WAYS[way])
        for wanted in (PixelFormat(), PixelFormat(1), PixelFormat(3, 16)):
            assert not ends_early(data, decode(data, wanted), wanted)
            for share in (0.3, 0.6, 0.9, 0.98):
                cut = data[: int(len(data) * share)] + b"\xff\xd9"
                assert ends_early(cut, decode(cut, wanted), wanted), share
    flat = encode(Image.new("RGB", (300, 200), "gray"), "JPEG", **WAYS[way])
    assert not ends_early(flat, decode(flat))
    capfd.readouterr()


@pytest.mark.parametrize("kind", [kind for kind in EIGHT_BIT if not kind.startswith("jpeg")])
def test_only_jpegs_end_early(kind: str) -> None:
    assert not ends_early(EIGHT_BIT[kind], decode(EIGHT_BIT[kind]))


# Formats


@pytest.mark.parametrize("name", OTHERS)
def test_a_format_that_is_not_read_is_named_and_starts_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("check_call", "check_output", "run", "Popen"):
        monkeypatch.setattr(f"subprocess.{function}", lambda *words, **_: pytest.fail(f"starts {words}"))
    for judge in (decode, lambda data: check_picture(data, 10**9)):
        with pytest.raises(UnreadableImage) as caught:
            judge(OTHERS[name])
        assert str(caught.value) == f"holds {name}, which is not read; save it as one of {READ}"


@pytest.mark.parametrize("form", ["PCX", "SGI", "SPIDER", "MSP"])
def test_what_else_pillow_knows_is_not_opened(form: str) -> None:
    mode = {"MSP": "1", "SPIDER": "F"}.get(form, "RGB")
    with pytest.raises(UnreadableImage, match=f"^not an image of a known format; read are {READ}$"):
        decode(encode(photo().convert(mode), form))
    assert form not in OPENED


def test_avif_is_read_as_pillow_reads_it() -> None:
    for options in ({}, {"subsampling": "4:4:4"}, {"quality": 100}):
        data = encode(photo(), "AVIF", **options)
        check_picture(data, 10**9)
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        for fast in (True, False):
            pixels = read(data, fast)
            assert not isinstance(pixels, str)
            assert np.array_equal(pixels.permute(1, 2, 0), expected)
    turned = Image.Exif()
    turned[decoding.ORIENTATION] = 6
    data = encode(photo(), "AVIF", exif=turned)
    assert decode(data, PixelFormat(exif="apply")).shape == (3, 131, 97)


def test_the_corpus_has_what_it_says() -> None:
    assert all(data.startswith(PNG_BEGINS) for data in pictures()["PNG"])
    assert len({*pictures()["PNG"]}) == 9


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_decodes_nothing_yet_and_leaves_logging_alone() -> None:
    code = (
        "import logging, sys, vitrail.images.decoding;"
        "print('torchcodec' in sys.modules, logging.getLogger('PIL').handlers)"
    )
    assert run_python(code) == "False []"


def test_loggers_get_one_handler_however_many_images_are_read() -> None:
    five = io.BytesIO()
    tifffile.imwrite(five, np.zeros((32, 32, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    for _ in range(3):
        decode(five.getvalue(), PixelFormat(channels=5))
        decode(png())
    for name in ("PIL", "tifffile"):
        handlers = [type(handler) for handler in logging.getLogger(name).handlers]
        assert handlers.count(logging.NullHandler) == 1, name
