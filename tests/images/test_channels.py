"""Images that are not RGB of 8 bits: what becomes of every kind of file, and whole runs on them."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn.functional import interpolate

from support.commands import refused, run
from support.images import EIGHT_BIT, PLAIN, encode, npy, photo, png_16, read, reason, write
from support.runs import TINY
from support.tiff_files import tiff_file
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.data.audit.inspect_file import Finding, inspect
from vitrail.data.sources import PixelSource
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.images import decoding
from vitrail.images.decoding import decode, to_pixels
from vitrail.images.pixels import PixelFormat, UnreadableImage, check_size, describe_channels
from vitrail.images.preprocess import Preprocess, describe_normalisation, normalise
from vitrail.images.train_view import TrainView
from vitrail.pages.render import picture, pictured
from vitrail.training.initial_model import open_initial_weights, tell_statistics
from vitrail.weights.checkpoint import parse_record, to_metadata
from vitrail.weights.hub import model_card
from vitrail.weights.loading import load_model

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 65536, (20, 30, 5)).astype(np.uint16)


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


# Gray


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_one_channel_is_pillows_gray(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.array(Image.open(io.BytesIO(EIGHT_BIT[kind])).convert("L"))[:, :, None]
    assert np.array_equal(read(EIGHT_BIT[kind], 1), expected)
    monkeypatch.setattr(decoding, "fast_decoders", dict)
    assert np.array_equal(read(EIGHT_BIT[kind], 1), expected)
    assert np.array_equal(to_pixels(Image.open(io.BytesIO(EIGHT_BIT[kind])), PixelFormat(1))[0], expected[:, :, 0])


def test_gray_of_colour_jpegs_is_pillows_to_the_last_bit() -> None:
    for number in range(40):
        noise = Image.fromarray(RNG.integers(0, 256, (*RNG.integers(1, 60, 2), 3)).astype(np.uint8))
        data = encode(noise, "JPEG", quality=40 + number, progressive=number % 2 == 0)
        assert np.array_equal(read(data, 1)[:, :, 0], np.array(Image.open(io.BytesIO(data)).convert("L")))


def test_gray_of_16_bits_is_read_as_it_is_stored() -> None:
    levels = FIVE[:, :, :1]
    image = Image.fromarray(levels[:, :, 0])
    for data in (encode(image, "PNG"), encode(image, "TIFF"), tiff(levels[:, :, 0], byteorder=">"), png_16(levels)):
        assert np.array_equal(read(data, 1, 16), levels)
        assert np.array_equal(read(data, 1), levels >> 8)
        assert np.array_equal(read(data, 3, 16), levels.repeat(3, 2))
    pgm = b"P5 30 20 65535\n" + levels.astype(">u2").tobytes()
    assert np.array_equal(read(pgm, 1, 16), levels)


def test_8_bits_become_16_times_257() -> None:
    for kind in ("jpeg", "png", "png gray", "png palette", "tiff", "webp", "ppm"):
        data = EIGHT_BIT[kind]
        assert np.array_equal(read(data, 3, 16), read(data).astype(np.uint16) * 257)
    gray = read(EIGHT_BIT["jpeg"], 1, 16).astype(int) - 257 * read(EIGHT_BIT["jpeg"], 1).astype(int)
    assert np.abs(gray).max() <= 129  # colours are mixed with all the bits that are wanted


# Colours of 16 bits


@pytest.mark.skipif(decoding.decoder_name() != "torchcodec", reason="needs torchcodec")
def test_a_png_of_16_bit_colours_is_read_whole() -> None:
    for channels in (3, 4):
        data = png_16(FIVE[:, :, :channels])
        assert np.array_equal(read(data, channels, 16), FIVE[:, :, :channels])
        assert np.array_equal(read(data, 3, 16), FIVE[:, :, :3])
        assert np.array_equal(read(data, 3), FIVE[:, :, :3] >> 8)
    assert np.array_equal(read(png_16(FIVE[:, :, :2]), 1, 16), FIVE[:, :, :1])
    assert np.array_equal(read(png_16(FIVE[:, :, :2]), 2, 16), FIVE[:, :, :2])


def test_colours_that_would_lose_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_16(FIVE[:, :, :3])
    turned = png_16(FIVE[:, :, :3], extra=struct.pack(">I", 0) + b"eXIf" + struct.pack(">I", zlib.crc32(b"eXIf")))
    advice = "which data.bits=16 cannot read; save it as plain PNG, TIFF or .npy, or read all with data.bits=8"
    assert reason(turned, 3, 16) == f"has colours of 16 bits beside EXIF, {advice}"
    assert np.array_equal(read(turned, 3), FIVE[:, :, :3] >> 8)
    ppm = b"P6 30 20 65535\n" + FIVE[:, :, :3].astype(">u2").tobytes()
    assert "save it as plain PNG, TIFF or .npy" in reason(ppm, 3, 16)
    assert reason(encode(photo(), "AVIF"), 3, 16) == f"its AVIF colours may have more than 8 bits, {advice}"
    monkeypatch.setattr(decoding, "fast_decoders", dict)
    assert reason(data, 3, 16) == "has colours of 16 bits, which need torchcodec (pip install torchcodec)"
    assert np.array_equal(read(data), FIVE[:, :, :3] >> 8)


# Any number of channels


def test_npy_is_read_in_every_layout() -> None:
    for array in (FIVE, np.asfortranarray(FIVE), FIVE.astype(">u2")):
        assert np.array_equal(read(npy(array), 5, 16), FIVE)
    assert np.array_equal(read(npy(FIVE), 5), FIVE >> 8)
    small = (FIVE >> 8).astype(np.uint8)
    assert np.array_equal(read(npy(small[:, :, :3])), small[:, :, :3])
    assert np.array_equal(read(npy(small[:, :, 0])), small[:, :, :1].repeat(3, 2))
    decode(npy(small), PixelFormat(5)).add_(1)  # is a copy that may be written to


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(FIVE), "has 5 channels, and 3 are wanted (data.channels)"),
        (npy(FIVE.astype(np.float32)), "is float32; save it as uint8 or uint16, in the range of that type"),
        (npy(FIVE.astype(np.int16)), "is int16; save it as"),
        (npy(np.array([{}, 1], dtype=object)), "is object; save it as"),
        (
            npy(np.zeros((3, 20, 30), np.uint8)),
            "is of shape (3, 20, 30); save it as (height, width) or",
        ),
        (npy(np.zeros(20, np.uint8)), "is of shape (20,); save it as (height, width) or"),
        (npy(np.zeros((0, 20), np.uint8)), "is of shape (0, 20); save it as"),
        (npy(FIVE)[:-1], "has 5,999 bytes of pixels where 6,000 belong"),
        (npy(FIVE) + b"more", "has 6,004 bytes of pixels where 6,000 belong"),
        (npy(FIVE)[:40], "its .npy header is damaged, or of a kind that holds no image"),
        (npy(FIVE).replace(b"(20, 30, 5)", b"(9**9,9, 5)"), "its .npy header is damaged"),
        (npy(FIVE).replace(b"(20, 30, 5), }", b"(99999,99999),"), "its .npy header is damaged"),
        (npy(FIVE).replace(b"(20, 30, 5), }  ", b"(99999,99999), }"), "has more than 178,956,970 pixels"),
    ],
)
def test_npy_that_is_no_image_says_why(data: bytes, message: str) -> None:
    assert reason(data).startswith(message)


def test_no_picture_may_have_too_many_values_or_none() -> None:
    check_size(10_000, 10_000, 7)
    with pytest.raises(UnreadableImage, match="more than 715,827,880 values in all its channels"):
        check_size(10_000, 10_000, 8)
    with pytest.raises(UnreadableImage, match="is 0 x 5 pixels of 1 channel"):
        check_size(0, 5)


@pytest.mark.parametrize(
    ("planes_first", "options"),
    [
        (False, PLAIN),
        (False, {**PLAIN, "byteorder": ">", "rowsperstrip": 7}),
        (False, {**PLAIN, "bigtiff": True}),
        (False, {**PLAIN, "compression": "zlib", "predictor": 2, "tile": (16, 16)}),
        (True, {"photometric": "minisblack", "planarconfig": "separate"}),
        (True, {"photometric": "minisblack", "compression": "zlib"}),  # a page for each channel
    ],
)
def test_tiff_is_read_in_every_layout(planes_first: bool, options: dict) -> None:
    for array in (FIVE, (FIVE >> 8).astype(np.uint8)):
        data = tiff(array.transpose(2, 0, 1).copy() if planes_first else array, **options)
        assert np.array_equal(read(data, 5, 8 * array.itemsize), array)
        assert reason(data, 4).startswith(("has 5 channels, and 4 are wanted", "has 1 channel, and 4 are wanted"))
        cut = bytearray(data)
        del cut[-300:]
        reason(bytes(cut), 5)


def test_tiff_of_16_bit_colours_is_read_whole() -> None:
    assert np.array_equal(read(tiff(FIVE[:, :, :3], photometric="rgb"), 3, 16), FIVE[:, :, :3])
    assert np.array_equal(read(tiff(FIVE[:, :, :3], photometric="rgb")), FIVE[:, :, :3] >> 8)
    assert np.array_equal(read(tiff(FIVE[:, :, :3], **PLAIN), 3, 16), FIVE[:, :, :3])  # which Pillow does not know
    alpha = tiff(FIVE[:, :, :4], photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read(alpha, 4, 16), FIVE[:, :, :4])
    assert np.array_equal(read(alpha, 3, 16), FIVE[:, :, :3])


def test_alpha_is_a_channel_where_it_is_asked_for() -> None:
    levels = RNG.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    image = Image.fromarray(levels)
    for form, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ):
        assert np.array_equal(read(encode(image, form, **options), 4), levels)
        assert np.array_equal(read(encode(image, form, **options)), levels[:, :, :3])
    assert np.array_equal(read(encode(image.getchannel(0).convert("LA"), "PNG"), 2)[:, :, 0], levels[:, :, 0])
    assert read(EIGHT_BIT["png palette, one transparent"], 4).shape == (97, 131, 4)
    for kind in ("jpeg", "jpeg cmyk", "png palette", "tiff"):
        assert reason(EIGHT_BIT[kind], 4) == "has 3 channels, and 4 are wanted (data.channels)"
    assert reason(EIGHT_BIT["png gray"], 4) == "has 1 channel, and 4 are wanted (data.channels)"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(FIVE.astype(np.float32), **PLAIN), "is float32; save it as uint8 or uint16"),
        (tiff_file(FIVE, 16, compression=5), "is packed by LZW, which needs imagecodecs (pip install"),
        (encode(photo(), "TIFF", compression="tiff_lzw"), "has 3 channels, and 5 are wanted"),
        (tiff(FIVE[:, :, 0], photometric="miniswhite"), "has 1 channel, and 5 are wanted"),
        (tiff(FIVE, **PLAIN, volumetric=True), "is a volume of 20 layers; save one of them"),
    ],
)
def test_tiff_that_cannot_be_read_says_why(
    data: bytes, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # whatever else is installed here
    assert reason(data, 5, 16).startswith(message)
    assert capfd.readouterr().err == ""


def test_tiff_that_unpacks_to_more_than_it_says_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = tiff(np.zeros((2, 2, 5), np.uint8), **PLAIN, compression="zlib")
    bomb = zlib.compress(bytes(10**7))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        tags = [page.tags["StripOffsets"], page.tags["StripByteCounts"]]
    bent = bytearray(data + bomb)
    for tag, value in zip(tags, (len(data), len(bomb)), strict=True):
        struct.pack_into("<H" if tag.dtype == 3 else "<I", bent, tag.valueoffset, value)
    assert reason(bytes(bent), 5) == "unpacks to more than its size"


def test_a_tiff_of_many_channels_without_tifffile_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert reason(tiff(FIVE, **PLAIN), 5) == "is a TIFF of a kind that needs tifffile (pip install tifffile)"
    assert read(EIGHT_BIT["tiff"], 1).shape == (97, 131, 1)


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    draw = random.Random(0)
    zipped = {**PLAIN, "compression": "zlib", "tile": (16, 16)}
    paged = tiff(FIVE.transpose(2, 0, 1).copy(), photometric="minisblack")
    originals = [npy(FIVE), npy(FIVE[:, :, 0]), tiff(FIVE, **PLAIN), tiff(FIVE, **zipped), paged]
    outcomes = set()
    for number in range(300):
        data = bytearray(originals[number % len(originals)])
        at = draw.randrange(min(len(data), 400)) if number % 3 else draw.randrange(len(data))
        if number % 7 == 0:
            del data[at:]
        elif number % 7 == 1:
            data[at : at + 8] = b"\xff" * draw.randint(1, 8)
        else:
            data[at] = draw.randrange(256)
        found = inspect("x.tif", bytes(data), PixelFormat(5, 16))  # which decodes, and reads the header
        outcomes.add(Finding.UNREADABLE in found.findings)
        assert (found.reason == "") == (Finding.UNREADABLE not in found.findings)
    assert outcomes == {True, False}


# Views


def test_views_of_16_bits_are_those_of_8_but_finer() -> None:
    small = read(EIGHT_BIT["jpeg"], 1)
    deep = torch.from_numpy(small.astype(np.uint16) * 257).permute(2, 0, 1)
    shallow = torch.from_numpy(small).permute(2, 0, 1)
    preprocess = Preprocess(size=(32, 40), channels=1, bits=16, mean=(0.4,), std=(0.3,))
    view, coarse = preprocess.view(deep), preprocess.view(shallow)
    assert view.dtype == torch.uint16
    assert (view.int() - 257 * coarse.int()).abs().max() <= 2 * 257
    draw = TrainView(size=(32, 40), mean=(0.4,))
    drawn = [draw.view(image, 7) for image in (deep, shallow)]
    assert drawn[0].dtype == torch.uint16
    assert (drawn[0].int() - 257 * drawn[1].int()).abs().max() <= 2 * 257
    expected = (view.double() / 65535 - 0.4) / 0.3
    assert torch.allclose(normalise(view[None], (0.4,), (0.3,))[0].double(), expected, atol=1e-5)
    assert torch.equal(preprocess(deep), normalise(view[None], (0.4,), (0.3,))[0])


def test_views_keep_every_channel_to_itself() -> None:
    image = torch.from_numpy(FIVE).permute(2, 0, 1)
    whole = Preprocess(size=(16, 24), channels=5, bits=16, mean=(0.5,) * 5, std=(0.5,) * 5)
    for channel in range(5):
        alone = Preprocess(size=(16, 24), channels=1, bits=16, mean=(0.5,), std=(0.5,))
        assert torch.equal(whole.view(image)[channel], alone.view(image[channel : channel + 1])[0])
    scaled = interpolate(image[None].float(), (17, 26), mode="bicubic", antialias=True)[0].round().clamp(0, 65535)
    assert torch.equal(whole.view(image), scaled.to(torch.uint16)[:, 0:16, 1:25])
    eight = TrainView(size=(16, 24), mean=(0.5,) * 5).view((image.int() >> 8).to(torch.uint8), 3)
    assert eight.shape == (5, 16, 24)
    assert eight.dtype == torch.uint8


@pytest.mark.usefixtures("without_shape_checks")
def test_a_tensor_must_be_what_the_weights_need() -> None:
    preprocess = Preprocess(size=(8, 8), channels=5, bits=16, mean=(0.5,) * 5, std=(0.5,) * 5)
    with pytest.raises(DataError, match=r"image is torch.uint8 of shape \(5, 9, 9\); give torch.uint16 of shape \(5,"):
        preprocess(torch.zeros(5, 9, 9, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="each must have 5 numbers, one a channel, std above 0"):
        Preprocess(size=(8, 8), channels=5)
    with pytest.raises(ConfigError, match="bits is 12; it must be 8 or 16"):
        Preprocess(size=(8, 8), bits=12)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def test_normalisation_is_said_in_few_words() -> None:
    assert (
        describe_normalisation((0.5,) * 9, (0.25,) * 9)
        == "pixels are normalised by mean 0.5 and std 0.25 of their range"
    )
    assert "mean 0.1, 0.2 and std 0.3, 0.3 of" in describe_normalisation((0.1, 0.2), (0.3, 0.3))


def test_named_sets_follow_the_same_rules() -> None:
    small, none = (FIVE >> 8).astype(np.uint8), np.zeros(1, np.int32)
    gray = PixelSource("set", small[None, :, :, 0], none, ("a",), np.array(["set/0"]))
    assert np.array_equal(gray.image(0, PixelFormat(1))[0], small[:, :, 0])
    assert np.array_equal(gray.image(0, PixelFormat()).permute(1, 2, 0), small[:, :, :1].repeat(3, 2))
    assert np.array_equal(gray.image(0, PixelFormat(1, 16))[0], small[:, :, 0].astype(np.uint16) * 257)
    with pytest.raises(UnreadableImage, match="has 1 channel, and 4 are wanted"):
        gray.image(0, PixelFormat(4))


# Settings


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["data.channels=0"], "data.channels is 0; it must be from 1 to 1000"),
        (["data.bits=12"], "data.bits is '12'; it must be one of 8, 16"),
        (
            ["data.channels=1", "augment.auto_augment=rand-m9"],
            "augment.auto_augment=rand-m9 knows only RGB of 8 bits; set it to null, or leave out data.channels=1",
        ),
        (["data.bits=16", "augment.color_jitter=0.4"], "augment.color_jitter=0.4 knows only RGB of 8 bits"),
        (
            ["data.channels=5", "preprocess.mean=[0.1, 0.2, 0.3]"],
            "preprocess.mean is (0.1, 0.2, 0.3); it must have a number for each of data.channels=5",
        ),
        (["preprocess.std=[]"], "preprocess.std is (); it must be"),
    ],
)
def test_settings_that_contradict_the_images_are_refused(tokens: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [parse_command_line(["data.root=x", *tokens])])
    assert message in str(caught.value)


# Whole runs


class Run(NamedTuple):
    """A run on small images of two classes."""

    data: Path
    channels: int
    bits: int
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"


@pytest.fixture(scope="module", params=[(1, 16, (".png", ".tif")), (5, 8, (".npy", ".tif"))], ids=["gray", "five"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two epochs on gray images of 16 bits, or on five channels of 8."""
    channels, bits, suffixes = request.param
    root, rng = tmp_path_factory.mktemp("channels"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            for number in range(count):
                pixels = rng.integers(0, 60, (36, 40, channels)) + 60 * label
                pixels = (pixels * (16 if bits == 16 else 1)).astype(f"uint{bits}").squeeze()
                write(root / "images" / split / name / f"{number}{suffixes[number % 2]}", pixels)
    settings = [f"data.channels={channels}", f"data.bits={bits}", "train.epochs=2"]
    folder = f"output.root={root}"
    assert run("train", TINY, f"data.root={root / 'images'}", folder, "output.name=run", *settings) == 0
    return Run(root / "images", channels, bits, root / "run")


def test_a_weight_file_says_what_it_needs(trained: Run) -> None:
    model = load_model(trained.weights)
    preprocess = model.preprocess
    assert isinstance(preprocess, Preprocess)
    assert (preprocess.channels, preprocess.bits) == (trained.channels, trained.bits)
    assert model.config.in_channels == len(preprocess.mean) == trained.channels
    path = next((trained.data / "val" / "dark").glob("*.tif"))
    pixels = decode(path.read_bytes(), preprocess.pixels)
    assert torch.equal(preprocess(path), preprocess(pixels))
    assert model(preprocess(pixels)[None]).shape == (1, 2)
    page = (trained.folder / "report" / "report.html").read_text()
    assert pictured(preprocess.pixels) in page


def test_weights_say_in_training_what_they_were_made_for(trained: Run) -> None:
    other = 24 - trained.bits
    tokens = [f"data.root={trained.data}", f"data.channels={trained.channels}", f"model.weights={trained.weights}"]
    config = resolve(TrainConfig, [read_yaml(TINY), parse_command_line([*tokens, f"data.bits={other}"])]).config
    display = Said()
    opened = open_initial_weights(config, "tnt_ti_patch16_224", ("dark", "light"), display)
    assert f"expects data.bits={trained.bits}; the settings say {other}, which is taken" in display.text
    tell_statistics(config, opened.record.preprocess, display)
    pixels = f"data.channels={trained.channels} data.bits={trained.bits}"
    assert f"{pixels}: pixels are normalised by mean 0.5" in display.text
    assert f"vitrail check-data data.root={trained.data} data.channels={trained.channels}" in display.text
    metadata = to_metadata(replace(opened.record, preprocess=Preprocess(size=(32, 32))))
    with pytest.raises(CheckpointError, match=rf"\(its model takes {trained.channels} channels and .* gives 3\)"):
        parse_record(metadata, "x")
    assert f"image of {describe_channels(trained.channels)}, {trained.bits} bits each, is" in model_card(opened.record)


class Said(Quiet):
    """A display that keeps what was said."""

    text = ""

    def note(self, text: str) -> None:
        self.text += text

    warn = note


def test_evaluation_and_prediction_read_as_training_did(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", trained.weights, "--json", "found.json", "data.workers=0") == 0
    best = max(json.loads(line)["val_top1"] for line in (trained.folder / "metrics.jsonl").read_text().splitlines())
    assert json.loads(Path("found.json").read_text())["top1"] == best
    message = refused(capsys, "evaluate", trained.weights, "data.channels=3")
    channels = "1 channel" if trained.channels == 1 else f"{trained.channels} channels"
    assert f"reads images of {channels} and {trained.bits} bits, the settings say data.channels=3" in message
    odd = tmp_path / "odd.npy"
    np.save(odd, np.zeros((40, 40, 7), np.uint8))
    assert run("predict", trained.weights, trained.data / "val", odd, "--format", "csv", "--device", "cpu") == 1
    assert f"has 7 channels, and {trained.channels} are wanted (data.channels)" in Path("predictions.csv").read_text()
    message = refused(capsys, "predict", trained.weights, odd, "preprocess.mean=[0.1,0.2]")
    assert f"each must have {trained.channels} numbers, one a channel" in message
    message = refused(capsys, "train", TINY, f"data.root={trained.data}", f"model.weights={trained.weights}")
    assert f"leave it at {trained.channels}, in training by data.channels={trained.channels}" in message


def test_the_check_reads_as_training_does(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = [f"data.root={trained.data}", f"data.channels={trained.channels}", f"data.bits={trained.bits}"]
    assert run("check-data", *pixels, "data.manifest=own.manifest") == 0
    printed = capsys.readouterr().out
    assert "augment.auto_augment=null 'preprocess.mean=[" in printed
    assert "8 bits a channel" not in printed
    assert "more than 8 bits" not in printed
    found = json.loads(Path("data-check/check.json").read_text())["statistics"]
    assert found["formats"] == ({"PNG": 12, "TIFF": 12} if trained.channels == 1 else {"TIFF": 12, "NPY": 12})
    assert found["pixels"]["images"] == 16
    wanted = PixelFormat(trained.channels, trained.bits)
    stored = [decode(path.read_bytes(), wanted) for path in trained.data.glob("train/*/*")]
    values = torch.stack(stored).double() / (2**trained.bits - 1)
    assert found["pixels"]["mean"] == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert found["pixels"]["std"] == pytest.approx(values.var((0, 2, 3), correction=0).sqrt().tolist())
    assert pictured(wanted) in Path("data-check/check.html").read_text()
    message = refused(capsys, "check-data", "data.manifest=own.manifest")
    assert f"its images were read with {' '.join(pixels[1:])}; set the same" in message
    # with other channels all is looked at anew
    status = run("check-data", pixels[0], "data.manifest=own.manifest")
    printed = capsys.readouterr().out
    if trained.channels == 1:
        assert status == 0
        assert "24 images are gray" in printed
        assert "24 images have more than 8 bits a channel" in printed
    else:
        assert status == 1
        assert "24 images cannot be read: has 5 channels, and 3 are wanted (data.channels)" in printed


def test_shards_and_resized_copies_hold_such_images_too(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = [f"data.channels={trained.channels}", f"data.bits={trained.bits}"]
    assert run("pack", f"data.root={trained.data}", *pixels, "--output", "shards") == 0
    assert run("resize-data", f"data.root={trained.data}", *pixels, "--output", "small", "--short-side", 16) == 0
    assert "cannot be read" not in capsys.readouterr().out
    found = []
    for root in (trained.data, "shards", "small"):  # of which none is resized, for their kinds
        assert run("evaluate", trained.weights, f"data.root={root}", "--json", "found.json", "data.workers=0") == 0
        found.append(json.loads(Path("found.json").read_text())["loss"])
    assert found[0] == found[1] == found[2]
    assert run("check-data", "data.root=shards", *pixels) == 0
    assert run("check-data", "data.root=shards") == (trained.channels == 5)  # looked at anew
    assert run("check-data", "data.root=shards", *pixels) == 0


def test_the_check_names_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write(
            tmp_path / "images" / "ab"[number % 2] / f"{number}.png", RNG.integers(0, 256, (20, 20, 3)).astype(np.uint8)
        )
    assert run("check-data", "data.root=images", "data.channels=1", "data.bits=16") == 0
    printed = capsys.readouterr().out
    assert "6 images have 8 bits a channel" in printed
    assert "6 images are in colour" in printed
    assert "mode L (data.channels=1)" in printed


def test_pictures_of_any_image_can_be_looked_at() -> None:
    dim = torch.arange(16).view(1, 4, 4).to(torch.uint16) * 20  # as a detector of 12 bits gives
    for pixels in (dim, dim.repeat(2, 1, 1), dim.repeat(5, 1, 1), torch.zeros(4, 3, 3, dtype=torch.uint8)):
        assert picture(pixels).startswith("data:image/png;base64,")
    assert pictured(PixelFormat()) == ""
    assert pictured(PixelFormat(1)) == ""
    assert pictured(PixelFormat(2)) == "Pictures show the first one of 2 channels."
    assert "the first three of 5 channels, 16 bits as 8, each picture from its least" in pictured(PixelFormat(5, 16))
