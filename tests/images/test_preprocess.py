"""Decoding to exact pixels, and the evaluation view against timm's."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from support.images import EIGHT_BIT, encode, photo
from vitrail.errors import ConfigError, DataError
from vitrail.images import decoding
from vitrail.images.decoding import decode, to_pixels
from vitrail.images.pixels import PixelFormat, UnreadableImage
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.images.train_view import TrainView


def pillow_pixels(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_decoding_gives_exactly_pillows_pixels(kind):
    pixels = decode(EIGHT_BIT[kind])
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, pillow_pixels(EIGHT_BIT[kind]))


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_without_torchcodec_the_pixels_are_the_same(kind, monkeypatch):
    expected = decode(EIGHT_BIT[kind])
    monkeypatch.setattr(decoding, "fast_decoders", dict)
    assert torch.equal(decode(EIGHT_BIT[kind]), expected)


def test_transparency_in_palette_bytes_does_not_warn():
    # warnings are errors in this run
    assert decode(encode(photo().quantize(64), "PNG", transparency=bytes(range(64)))).shape == (3, 97, 131)


def gray_ramp(dtype: str) -> np.ndarray:
    return np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(dtype)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    expected = torch.from_numpy((gray_ramp("int32") >> 8).astype(np.uint8)).expand(3, 30, 40)
    big_endian = struct.pack(">2sHI", b"MM", 42, 8) + struct.pack(">H", 9)
    tags = [(256, 40), (257, 30), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 30), (279, 2400)]
    big_endian += b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    files = [
        encode(Image.fromarray(gray_ramp("uint16")), "PNG"),
        encode(Image.fromarray(gray_ramp("uint16")), "TIFF"),
        big_endian + gray_ramp(">u2").tobytes(),
        b"P5 40 30 65535\n" + gray_ramp(">u2").tobytes(),
    ]
    for data in files:
        assert torch.equal(decode(data), expected)


def test_sixteen_bit_colour_png_takes_the_high_bytes():
    rows = b"".join(b"\0" + struct.pack(">12H", *range(r * 5000, r * 5000 + 12 * 300, 300)) for r in range(4))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert torch.equal(decode(data), pillow_pixels(data))
    assert decode(data)[0, 1, 0] == 5000 >> 8


def test_pixels_without_a_fixed_range_are_refused():
    for mode in ("I", "F"):
        with pytest.raises(
            UnreadableImage, match=r"^its 32-bit pixels have no fixed range; save it with 8 or 16 bits$"
        ):
            to_pixels(Image.new(mode, (4, 4)))
        with pytest.raises(UnreadableImage, match=r"^is (int|float)32; save it as uint8 or uint16, in the range of"):
            decode(encode(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_turns_the_image_only_when_asked(form, orientation):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    data = encode(photo(), form, exif=exif)
    upright = pillow_pixels(data)
    turned = {1: upright, 3: upright.flip(1, 2), 6: upright.transpose(1, 2).flip(2)}[orientation]
    assert torch.equal(decode(data), upright)
    assert torch.equal(decode(data, PixelFormat(exif="apply")), turned)
    assert torch.equal(to_pixels(Image.open(io.BytesIO(data)), PixelFormat(exif="apply")), turned)


def test_a_tiff_is_turned_always_and_once_as_pillow_does():
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    data = encode(photo(), "TIFF", exif=exif)
    for choice in ("ignore", "apply"):
        assert torch.equal(decode(data, PixelFormat(exif=choice)), to_pixels(photo()).transpose(1, 2).flip(2))


def test_broken_exif_leaves_the_pixels_readable():
    data = encode(photo(), "JPEG", exif=b"Exif\0\0XX*\0\x08\0\0\0\xff\xff")
    for exif in ("ignore", "apply"):
        assert torch.equal(decode(data, PixelFormat(exif=exif)), pillow_pixels(encode(photo(), "JPEG")))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["jpeg", "jpeg progressive", "png", "webp", "gif", "tiff", "bmp"])
def test_truncated_files_raise_with_either_decoder(kind, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(decoding, "fast_decoders", dict)
    for share in (0.3, 0.6, 0.9):
        data = EIGHT_BIT[kind][: int(len(EIGHT_BIT[kind]) * share)]
        with pytest.raises(UnreadableImage) as caught:
            decode(data)
        assert str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_jpeg_cut_by_two_bytes_raises():
    with pytest.raises(UnreadableImage, match=r"truncated"):
        decode(EIGHT_BIT["jpeg"][:-2])


def test_files_that_are_no_images_say_so():
    with pytest.raises(UnreadableImage, match=r"^the file is empty$"):
        decode(b"")
    read = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM and .npy"
    with pytest.raises(UnreadableImage, match=rf"^not an image of a known format; read are {read}$"):
        decode(b"\0<html>404</html>")
    with pytest.raises(UnreadableImage, match=rf"^holds HTML, which is not read; save it as one of {read}$"):
        decode(b"\n<html>404</html>")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    for size in ((decoding.MAX_PIXELS // 1000 + 1, 1000), (60000, 60000)):
        data = b"P5 %d %d 255\n" % size
        with pytest.raises(UnreadableImage, match=r"^has more than 178,956,970 pixels$"):
            decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many programs set it
    with pytest.raises(UnreadableImage, match=r"^has more than 178,956,970 pixels$"):
        decode(b"P5 60000 60000 255\n")


def test_a_hundred_million_pixels_do_not_warn():
    with pytest.raises(UnreadableImage, match=r"truncated"):
        decode(b"P5 10000 10000 255\n")


# Evaluation view


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 96)])
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 50), (900, 240)])
def test_evaluation_view_is_timms(interpolation, size, shape):
    image = photo(*shape)
    theirs = create_transform(size, interpolation=interpolation, crop_pct=0.9, use_prefetcher=True)(image)
    ours = Preprocess(size=size, crop=0.9, interpolation=interpolation).view(to_pixels(image))
    difference = (ours.int() - theirs.int()).abs()
    # torch and Pillow round the filter's weights differently; Pillow 13 also scales tall images by columns first
    by_rows = int(PIL.__version__.split(".")[0]) < 13 or shape[0] < 2 * shape[1]
    assert difference.max() <= (2 if by_rows else 6)
    assert difference.float().mean() < (0.1 if by_rows else 0.3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 50), (900, 240)])
@pytest.mark.parametrize(("resize", "crop_mode"), [("squash", "squash"), ("letterbox", "border")])
def test_squash_and_letterbox_are_timms_crop_modes(resize, crop_mode, shape, size, interpolation):
    image = photo(*shape)
    options = {"crop_mode": crop_mode, "crop_pct": 1.0, "use_prefetcher": True}
    theirs = create_transform(size, interpolation=interpolation, **options)(image)
    # a share of the centre means nothing to them
    ours = Preprocess(size=size, resize=resize, crop=0.5, interpolation=interpolation).view(to_pixels(image))
    difference = (ours.int() - theirs.int()).abs()
    by_rows = int(PIL.__version__.split(".")[0]) < 13 or shape[0] < 2 * shape[1]
    assert difference.max() <= (2 if by_rows else 6)
    assert difference.float().mean() < (0.1 if by_rows else 0.3)


def test_a_letterbox_shows_all_of_an_image_in_a_frame_of_the_mean():
    image = torch.full((2, 30, 10), 200, dtype=torch.uint8)
    view = Preprocess(size=(32, 64), channels=2, mean=(0.25, 1.0), std=(0.5, 0.5), resize="letterbox").view(image)
    # 32 x 11 pixels, and an odd one of the margin on the right, as in timm
    assert (view[:, :, 26:37] == 200).all()
    assert (view[0, :, :26] == 64).all()
    assert (view[1, :, 37:] == 255).all()
    deep = torch.full((1, 10, 30), 40000, dtype=torch.int32).to(torch.uint16)
    framed = Preprocess(size=(30, 30), channels=1, bits=16, mean=(0.5,), std=(0.5,), resize="letterbox").view(deep)
    assert framed.dtype == torch.uint16
    assert framed[0, :, 0].tolist() == [32768] * 10 + [40000] * 10 + [32768] * 10


def test_a_squashed_image_keeps_its_edges():
    image = torch.zeros(3, 20, 80, dtype=torch.uint8)
    image[:, :, :8] = 255
    assert Preprocess(size=(20, 20)).view(image).max() == 0
    view = Preprocess(size=(20, 20), resize="squash", interpolation="bilinear").view(image)
    assert (view[:, :, 0] == 255).all()
    assert (view[:, :, 5:] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 20), (20, 20000), (3, 2)])
def test_any_shape_has_an_evaluation_and_a_training_view(shape):
    image = torch.arange(3 * shape[0] * shape[1]).remainder(251).to(torch.uint8).view(3, *shape)
    for size in ((32, 32), (24, 48)):
        for resize in ("crop", "squash", "letterbox"):
            assert Preprocess(size=size, resize=resize).view(image).shape == (3, *size)
        for key in range(30):
            assert TrainView(size=size, auto_augment="rand-m9-mstd0.5-inc1").view(image, key).shape == (3, *size)


def test_calling_a_preprocess_takes_paths_bytes_pillow_images_and_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(EIGHT_BIT["png"])
    preprocess = Preprocess(size=(32, 32))
    expected = create_transform(32, interpolation="bicubic", crop_pct=0.9)(photo())
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), EIGHT_BIT["png"], photo(), to_pixels(photo())]
    for image in forms:
        normalised = preprocess(image)
        assert normalised.dtype == torch.float32
        torch.testing.assert_close(normalised, expected, rtol=0, atol=2.1 / 255 / 0.224)  # two levels
        assert torch.equal(normalised, preprocess(forms[0]))


def test_calling_a_preprocess_names_the_file_it_cannot_read(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    preprocess = Preprocess(size=(32, 32))
    with pytest.raises(UnreadableImage, match=r"/bad\.jpg: not an image of a known format; read are"):
        preprocess(tmp_path / "bad.jpg")
    with pytest.raises(UnreadableImage, match=r"/none\.jpg: No such file or directory$"):
        preprocess(tmp_path / "none.jpg")
    with pytest.raises(
        DataError, match=r"^image is torch.float32 of shape \(3, 4, 4\); give torch.uint8 of shape \(3, h, w\)$"
    ):
        preprocess(torch.zeros(3, 4, 4))


def test_preprocess_survives_json():
    for preprocess in (
        Preprocess(size=(224, 192)),
        Preprocess(size=(8, 8), crop=1.0, interpolation="bilinear", mean=(0.1, 1 / 3, 0.5), exif="apply"),
        Preprocess(size=(8, 8), resize="letterbox"),
    ):
        assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_a_description_that_says_nothing_of_resizing_cuts_the_centre():
    older = Preprocess(size=(8, 8)).to_dict()
    del older["resize"]
    assert Preprocess.from_dict(older).resize == "crop"


def test_preprocess_names_what_is_wrong():
    with pytest.raises(
        ConfigError, match=r"^preprocess.crp: unknown key; did you mean 'crop'\?; known keys: size, crop, "
    ):
        Preprocess.from_dict({"size": [8, 8], "crp": 1})
    with pytest.raises(ConfigError, match=r"^preprocess.size: missing; it is the height and width in pixels$"):
        Preprocess.from_dict({"crop": 1.0})
    problems = [
        ({"size": (0, 8)}, "size is (0, 8); it must be a positive height and width"),
        ({"crop": 1.5}, "crop is 1.5; it must be above 0 and at most 1"),
        ({"std": (0.0, 1.0, 1.0)}, "each must have 3 numbers, one a channel, std above 0"),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            "mean is (123.675, 116.28, 103.53); it is for pixels from 0 to 1: divide mean and std by 255",
        ),
    ]
    for values, problem in problems:
        with pytest.raises(ConfigError) as caught:
            Preprocess(**({"size": (8, 8)} | values))
        assert str(caught.value).startswith("preprocess: ")
        assert problem in str(caught.value)
    preprocess = Preprocess(size=(8, 8))
    # past the constructor, whose argument types are checked in this run
    object.__setattr__(preprocess, "interpolation", "cubic")
    object.__setattr__(preprocess, "exif", "yes")
    object.__setattr__(preprocess, "resize", "pad")
    with pytest.raises(ConfigError) as caught:
        preprocess.__post_init__()
    assert str(caught.value) == (
        "preprocess: resize is 'pad'; it must be 'crop', 'squash' or 'letterbox'; interpolation is 'cubic'; it must be "
        "'bicubic' or 'bilinear'; exif is 'yes'; it must be 'ignore' or 'apply'"
    )


def test_normalise_is_what_timm_does_to_one_image():
    preprocess = Preprocess(size=(97, 131), crop=1.0)
    expected = create_transform((97, 131), crop_pct=1.0)(photo())
    normalised = normalise(to_pixels(photo())[None], preprocess.mean, preprocess.std)
    assert normalised.is_contiguous()
    torch.testing.assert_close(normalised[0], expected, rtol=0, atol=1e-6)  # the order of two divisions
