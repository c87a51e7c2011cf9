"""The compiled operations on pictures beside Pillow's: equal to the last bit, and not needed."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from support.images import pictures
from vitrail.images.fast_policy import QUICK
from vitrail.kernels import compiled
from vitrail.kernels.compiled import NotCompiled, load
from vitrail.kernels.pictures import NAME, Compiled, check_library, find_compiled, prepare_pictures

FILL = (124, 116, 104)
FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prepared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the operations compiled, or skip where that is not possible."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv(compiled.VARIABLE, "auto")
    load.cache_clear()
    reason = prepare_pictures()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    yield
    load.cache_clear()


def compare_rotations(resample: Image.Resampling) -> None:
    rng = random.Random(int(resample))
    for picture in pictures():
        for degrees in (0.0, 90.0, -180.0, 30.0, -30.0, 1e-9, *(rng.uniform(-400, 400) for _ in range(20))):
            ours = QUICK["rotate"](np.array(picture), degrees, fillcolor=FILL, resample=resample)
            theirs = picture.rotate(degrees, resample=resample, fillcolor=FILL)
            assert np.array_equal(ours, np.asarray(theirs)), (picture.size, degrees)
            assert ours.flags.writeable


@pytest.mark.parametrize("resample", FILTERS)
def test_the_compiled_rotation_is_pillows(prepared: None, resample: Image.Resampling) -> None:
    assert find_compiled() is not None
    compare_rotations(resample)


@pytest.mark.parametrize("resample", FILTERS)
def test_without_a_compiler_pillow_rotates(monkeypatch: pytest.MonkeyPatch, resample: Image.Resampling) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "plain")
    load.cache_clear()
    assert prepare_pictures() == "VITRAIL_KERNELS=plain turns it off"
    assert find_compiled() is None
    compare_rotations(resample)


ENHANCED = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", ENHANCED)
def test_compiled_colours_are_pillows(prepared: None, name: str) -> None:
    rng = random.Random(name)
    for picture in pictures():
        for factor in (0.0, 0.1, 0.5, 1.0, 1.9, 2.5, *(rng.uniform(0, 2) for _ in range(20))):
            found = QUICK[name](np.array(picture), factor)
            assert np.array_equal(found, np.asarray(ENHANCED[name](picture).enhance(factor))), (picture.size, factor)


def moved(image: np.ndarray) -> list[np.ndarray]:
    """Return an image moved in every way that there is, near and far."""
    return [
        QUICK[name](image, amount * (100 if name.endswith("abs") else 1), fillcolor=FILL, resample=resample)
        for name in QUICK
        if name.startswith(("shear", "translate"))
        for amount in (0, 0.1, -0.37, 0.5, 1.3, -3)
        for resample in FILTERS
    ]


def test_a_picture_is_moved_alike_whether_or_not_it_is_compiled(
    prepared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [np.array(picture) for picture in pictures()]
    fast = [moved(image) for image in images]
    monkeypatch.setenv(compiled.VARIABLE, "plain")
    load.cache_clear()
    assert find_compiled() is None
    for image, found in zip(images, fast, strict=True):
        for one, other in zip(moved(image), found, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["auto_contrast", "brightness", "color", "contrast", "equalize", "sharpness"])
def test_a_picture_becomes_the_same_whether_or_not_it_is_compiled(
    prepared: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    few = np.random.default_rng(1).integers(100, 103, (41, 57, 3), dtype=np.uint8)
    images = [few, *map(np.array, pictures())]
    given = () if name in ("auto_contrast", "equalize") else (1.3,)
    fast = [QUICK[name](image, *given) for image in images]
    monkeypatch.setenv(compiled.VARIABLE, "plain")
    load.cache_clear()
    assert find_compiled() is None
    for image, found in zip(images, fast, strict=True):
        assert np.array_equal(QUICK[name](image, *given), found)


def test_pictures_with_gaps_between_their_rows_are_read_right(prepared: None) -> None:
    operations, picture = find_compiled(), np.array(pictures()[0])
    assert operations is not None
    for part in (picture[10:60, 5:99], picture[::2, ::-1], picture.transpose(1, 0, 2)):
        whole = np.ascontiguousarray(part)
        image = Image.fromarray(whole)
        found = operations.rotate(part, 12.5, FILL, is_cubic=True)
        wanted = image.rotate(12.5, Image.Resampling.BICUBIC, fillcolor=FILL)
        assert np.array_equal(found, np.asarray(wanted))
        assert operations.count_levels(part).ravel().tolist() == image.histogram()
        assert operations.sum_grays(part) == operations.sum_grays(whole)
        assert np.array_equal(operations.sharpen(part, 1.5), operations.sharpen(whole, 1.5))
        assert np.array_equal(operations.saturate(part, 1.5), operations.saturate(whole, 1.5))
        assert np.array_equal(operations.blend(part, 7, 1.5), operations.blend(whole, 7, 1.5))


def test_wrong_pixels_are_not_kept(prepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library = load(NAME)
    assert library is not None
    check_library(library)
    monkeypatch.setattr(Compiled, "saturate", lambda self, picture, factor: picture)
    with pytest.raises(NotCompiled, match=r"^what the compiler made of it computes wrong pixels$"):
        check_library(library)
