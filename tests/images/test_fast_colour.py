"""Quick colour operations beside timm's own, which are Pillow's: equal to the last bit."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from support.images import pictures
from vitrail.images.fast_policy import MOVES, QUICK

STRENGTHS = {
    "auto_contrast": [()],
    "equalize": [()],
    "invert": [()],
    "posterize": [(bits,) for bits in range(1, 10)],
    "solarize": [(threshold,) for threshold in range(257)],
    "solarize_add": [(add,) for add in range(129)],
}
"""Strengths of operations that take none, or whole numbers; the others take factors."""
FACTORS = [(0.0,), (0.1,), (0.19,), (0.5,), (1.0,), (1.3,), (1.9,), (2.5,)]


def noisy_pictures() -> list[Image.Image]:
    """Return pictures whose channels have few levels, one level, or gaps between them."""
    rng = np.random.default_rng(1)
    few = rng.integers(100, 103, (40, 56, 3), dtype=np.uint8)
    few[:, :, 1] = 7
    gaps = rng.integers(0, 256, (33, 57, 3), dtype=np.uint8) & 0xE0
    dark = rng.integers(0, 2, (300, 200, 3), dtype=np.uint8) * rng.integers(0, 256, (300, 200, 1), dtype=np.uint8)
    return [*pictures(), *map(Image.fromarray, (few, gaps, dark)), Image.new("RGB", (3, 3), "white")]


@pytest.mark.parametrize("name", sorted(set(QUICK) - set(MOVES)))
def test_colours_become_what_pillow_makes_them(name: str) -> None:
    rng = random.Random(name)
    strengths = STRENGTHS.get(name) or [*FACTORS, *((rng.uniform(0, 2),) for _ in range(20))]
    for picture in noisy_pictures():
        before = np.array(picture)
        for strength in strengths:
            ours = QUICK[name](before, *strength, fillcolor=(0, 0, 0), resample=Image.Resampling.BICUBIC)
            theirs = np.asarray(getattr(auto_augment, name)(picture, *strength))
            assert ours.dtype == np.uint8
            assert ours.flags.c_contiguous
            assert np.array_equal(ours, theirs), (name, strength, picture.size)
        assert np.array_equal(before, np.asarray(picture)), "an operation wrote into its picture"


@pytest.mark.parametrize("bits", [-1, 0])
def test_posterizing_to_no_bits_is_black(bits: int) -> None:
    picture = np.array(pictures()[1])
    black = QUICK["posterize"](picture, bits)
    assert black.shape == picture.shape
    assert not black.any()
