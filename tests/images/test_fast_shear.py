"""Quick shears and translations beside timm's own, which are Pillow's."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform

from vitrail.images.fast_shear import QUICK, speed_up_policy

FILL = (124, 116, 104)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(224, 224), (96, 160), (5, 7), (1, 1), (2, 300)]
    coarse = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size) for size in sizes]
    return [
        *coarse,
        Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)),
        Image.new("RGB", (40, 30), "red"),
    ]


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", [name for name in QUICK if name != "posterize"])
def test_a_picture_is_moved_as_pillow_moves_it_but_for_a_level_in_few_places(
    name: str, resample: Image.Resampling
) -> None:
    largest = 300 if name.endswith("abs") else 1.2
    rng, apart, values = random.Random(name), 0, 0
    for picture in pictures():
        for amount in (0, 1, -1, 0.5, largest, -largest, *(rng.uniform(-largest, largest) for _ in range(8))):
            how = {"fillcolor": FILL, "resample": resample}
            theirs = np.asarray(getattr(auto_augment, name)(picture, amount, **how)).astype(int)
            ours = np.asarray(QUICK[name](picture, amount, **how)).astype(int)
            difference = np.abs(ours - theirs)
            assert difference.max() <= 1
            apart, values = apart + np.count_nonzero(difference), values + difference.size
    assert apart < values / 200


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0", "originalr", "augmix-m3-w3"])
def test_all_that_timm_moves_by_rows_is_quick_and_the_draws_stay(policy: str) -> None:
    picture = pictures()[1]

    def build() -> object:
        return create_transform(96, is_training=True, separate=True, auto_augment=policy, color_jitter=None)[1]

    plain, quick = build(), build()
    speed_up_policy(quick)
    part = quick.transforms[0]
    operations = getattr(part, "ops", None) or [step for steps in part.policy for step in steps]
    moving = [op for op in operations if op.name.startswith(("Shear", "Translate"))]
    assert moving
    assert all(op.aug_fn is QUICK[auto_augment.NAME_TO_OP[op.name].__name__] for op in moving)
    for seed in range(20):
        states = []
        for transform in (plain, quick):
            random.seed(seed), np.random.seed(seed)
            transform(picture)
            states.append((random.getstate(), np.random.get_state()[1].tolist()))
        assert states[0] == states[1]


@pytest.mark.parametrize("bits", range(-1, 10))
def test_posterizing_is_timms_and_to_no_bits_is_black(bits: int) -> None:
    picture = pictures()[1]
    ours = np.asarray(QUICK["posterize"](picture, bits))
    if bits > 0:
        assert np.array_equal(ours, np.asarray(auto_augment.posterize(picture, bits)))
    else:
        assert ours.shape == np.asarray(picture).shape
        assert not ours.any()
