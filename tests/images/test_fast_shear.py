"""Quick shears and translations beside timm's own, which are Pillow's."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from support.images import pictures
from vitrail.images.fast_policy import QUICK

FILL = (124, 116, 104)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", [name for name in QUICK if name.startswith(("shear", "translate"))])
def test_a_picture_is_moved_as_pillow_moves_it_but_for_a_level_in_few_places(
    name: str, resample: Image.Resampling
) -> None:
    largest = 300 if name.endswith("abs") else 1.2
    rng, apart, values = random.Random(name), 0, 0
    for picture in pictures():
        for amount in (0, 1, -1, 0.5, largest, -largest, *(rng.uniform(-largest, largest) for _ in range(8))):
            how = {"fillcolor": FILL, "resample": resample}
            theirs = np.asarray(getattr(auto_augment, name)(picture, amount, **how)).astype(int)
            ours = QUICK[name](np.array(picture), amount, **how).astype(int)
            difference = np.abs(ours - theirs)
            assert difference.max() <= 1
            apart, values = apart + np.count_nonzero(difference), values + difference.size
    assert apart < values / 200
