"""timm's policies on arrays beside timm's own, on Pillow images."""

import random
from typing import Any

import numpy as np
import pytest
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform

from support.images import pictures
from vitrail.images.fast_policy import QUICK, speed_up_policy, split_key

POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand-m9-n3-p0.8-mmax12-tweights",
    "rand-m6-n1-t3aw",
    "augmix-m3-w3",
    "augmix-m3-b1",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r",
    "3a",
]


def build(policy: str) -> Any:
    return create_transform(96, is_training=True, separate=True, auto_augment=policy, color_jitter=None)[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_on_arrays_draws_what_timm_draws_and_gives_its_pictures(policy: str) -> None:
    picture = pictures()[1]
    plain, quick = build(policy), speed_up_policy(build(policy))
    apart = []
    for key in [*range(30), 2**62 + 5]:
        random.seed(key), np.random.seed(split_key(key))
        theirs = np.asarray(plain(picture)).astype(int)
        state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
        random.seed(key), np.random.seed(split_key(key))
        ours = quick(np.array(picture), key)
        assert ours.flags.writeable
        assert random.getstate() == state
        assert not quick.draws_from_numpy or np.random.get_state()[1].tolist() == numpy_state
        apart.append(np.abs(ours - theirs).mean())
    # a level of a shear may become many where the next operation equalises or solarises
    assert max(apart) < 1
    assert np.mean(apart) < 0.05


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0", "originalr", "augmix-m3-w3"])
def test_all_operations_but_the_blur_of_3a_are_quick(policy: str) -> None:
    drawn = build(policy).transforms[0]
    operations = getattr(drawn, "ops", None) or [step for steps in drawn.policy for step in steps]
    names = {auto_augment.NAME_TO_OP[operation.name].__name__ for operation in operations}
    assert names <= set(QUICK)


def test_a_rand_augment_leaves_numpys_global_state_alone() -> None:
    quick = speed_up_policy(build("rand-m9-mstd0.5-inc1"))
    assert not quick.draws_from_numpy
    before = np.random.get_state()[1].tolist()
    quick(np.array(pictures()[0]), 3)
    assert np.random.get_state()[1].tolist() == before
