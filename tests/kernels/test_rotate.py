"""The compiled rotation beside Pillow's: equal to the last bit, and left to Pillow where nothing is compiled."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.images import pictures
from vitrail.kernels import compiled
from vitrail.kernels.compiled import NotCompiled, load
from vitrail.kernels.rotate import NAME, check_library, prepare_rotate, rotate, run_rotate

FILL = (124, 116, 104)
FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prepared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the rotation compiled, or skip where that is not possible."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv(compiled.VARIABLE, "auto")
    load.cache_clear()
    reason = prepare_rotate()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    yield
    load.cache_clear()


def compare(resample: Image.Resampling) -> None:
    rng = random.Random(int(resample))
    for picture in pictures():
        for degrees in (0.0, 90.0, -180.0, 30.0, -30.0, 1e-9, *(rng.uniform(-400, 400) for _ in range(20))):
            ours = rotate(np.array(picture), degrees, FILL, resample)
            theirs = picture.rotate(degrees, resample=resample, fillcolor=FILL)
            assert np.array_equal(ours, np.asarray(theirs)), (picture.size, degrees)
            assert ours.flags.writeable


@pytest.mark.parametrize("resample", FILTERS)
def test_the_compiled_rotation_is_pillows(prepared: None, resample: Image.Resampling) -> None:
    assert load(NAME) is not None
    compare(resample)


@pytest.mark.parametrize("resample", FILTERS)
def test_without_a_compiler_pillow_rotates(monkeypatch: pytest.MonkeyPatch, resample: Image.Resampling) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "plain")
    load.cache_clear()
    assert prepare_rotate() == "VITRAIL_KERNELS=plain turns it off"
    assert load(NAME) is None
    compare(resample)


def test_pictures_with_gaps_between_their_rows_are_read_right(prepared: None) -> None:
    library, picture = load(NAME), np.array(pictures()[0])
    assert library is not None
    for part in (picture[10:60, 5:99], picture[::2, ::-1], picture.transpose(1, 0, 2)):
        found = run_rotate(library, part, 12.5, FILL, is_cubic=True)
        wanted = Image.fromarray(np.ascontiguousarray(part)).rotate(12.5, Image.Resampling.BICUBIC, fillcolor=FILL)
        assert np.array_equal(found, np.asarray(wanted))


def test_wrong_pixels_are_not_kept(prepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library = load(NAME)
    assert library is not None
    check_library(library)

    class Wrong:
        def vitrail_rotate(self, *_: object) -> None:
            """Leave the picture as it is in memory."""

    with pytest.raises(NotCompiled, match=r"^what the compiler made of it computes wrong pixels$"):
        check_library(Wrong())  # type: ignore[reportArgumentType]
