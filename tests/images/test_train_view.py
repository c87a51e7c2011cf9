"""Training views against timm's, each a function of its seed."""

from __future__ import annotations

import pickle
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
from timm.data.auto_augment import NAME_TO_OP, AugmentOp
from timm.data.transforms_factory import create_transform

from support.images import encode, photo
from vitrail.errors import ConfigError
from vitrail.images.decoding import decode, to_pixels
from vitrail.images.fast_policy import QUICK
from vitrail.images.train_view import TrainView, sample_key

POLICIES = [
    None,
    "rand-m9-mstd0.5-inc1",
    "rand-m9-n3-p0.8-mmax12-tweights",
    "augmix-m3-w3",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r",
    "3a",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_training_view_is_a_function_of_its_key_and_disturbs_no_state(policy):
    view = TrainView(size=(48, 64), auto_augment=policy, color_jitter=0.4)
    image = to_pixels(photo())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [view.view(image, key) for key in range(2**40, 2**40 + 8)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    again = [pickle.loads(pickle.dumps(view)).view(image, key) for key in range(2**40, 2**40 + 8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(a.flatten().tolist()) for a in first}) == 8
    assert first[0].dtype == torch.uint8
    assert first[0].shape == (3, 48, 64)


def test_a_training_view_is_timms_for_the_same_draws():
    image = photo(375, 500)
    options = {"interpolation": "random", "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": None}
    first, policy, _ = create_transform(224, is_training=True, separate=True, hflip=0, **options)
    view = TrainView(size=(224, 224), auto_augment="rand-m9-mstd0.5-inc1", hflip=0.0)
    for key in range(6):
        random.seed(key), np.random.seed([key, 0])
        cropped = first(image)
        random.random()  # the mirror is drawn even where its probability is 0
        theirs = to_pixels(policy(cropped)).int()
        difference = (view.view(to_pixels(image), key).int() - theirs).abs()
        # where the crop differs by a level, an equalised or solarised pixel may differ by many
        assert difference.float().mean() < 0.6


@pytest.mark.parametrize("policy", [None, "rand-m9-mstd0.5-inc1"])
def test_a_training_view_lies_in_memory_as_rows_of_pixels_so_that_nothing_repacks_it(policy):
    view, image = TrainView(size=(32, 48), auto_augment=policy), decode(encode(photo(), "JPEG"))
    views = [view.view(image, key) for key in range(8)]
    assert all(found.permute(1, 2, 0).is_contiguous() for found in views)


def test_hflip_and_scale_are_obeyed():
    image = to_pixels(photo(64, 64))
    for hflip, expected in ((0.0, image), (1.0, image.flip(-1))):
        view = TrainView(size=(64, 64), scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=hflip)
        assert torch.equal(view.view(image, 3), expected)


def test_colour_jitter_changes_colours_as_timm_would_only_without_a_policy():
    image = to_pixels(photo(64, 64))
    still = {"size": (64, 64), "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    assert not torch.equal(TrainView(**still, color_jitter=0.4).view(image, 1), image)
    rand = TrainView(**still, auto_augment="rand-m9-inc1")
    assert torch.equal(
        TrainView(**still, auto_augment="rand-m9-inc1", color_jitter=0.4).view(image, 1), rand.view(image, 1)
    )
    three = TrainView(**still, auto_augment="3a")
    assert not torch.equal(TrainView(**still, auto_augment="3a", color_jitter=0.4).view(image, 1), three.view(image, 1))


@pytest.mark.parametrize(
    "policy", ["rand-m9-foo1", "rand-m9-inc", "randaugment", "", "autoaugment", "rand-m9.5", "augmix-d-1", "rand-tx"]
)
def test_an_unknown_policy_names_the_forms(policy):
    with pytest.raises(ConfigError) as caught:
        TrainView(size=(8, 8), auto_augment=policy)
    assert str(caught.value) == (
        f"augment.auto_augment {policy!r}: not a policy of timm; forms are rand-m9-mstd0.5-inc1, augmix-m3-w3, "
        "original-mstd0.5, originalr, v0, v0r, 3a, or null"
    )


@pytest.mark.parametrize("operation", NAME_TO_OP)
def test_every_operation_of_timm_runs_at_full_magnitude(operation):
    drawn = AugmentOp(operation, prob=1.0, magnitude=10)
    if quick := QUICK.get(drawn.aug_fn.__name__):
        drawn.aug_fn = quick
        assert drawn(np.array(photo())).shape == (97, 131, 3)
    else:
        assert drawn(photo()).size == (131, 97)


def test_sample_keys_are_the_same_for_ever():
    assert sample_key(0, 0, 0) == 5809880761037817570
    keys = {sample_key(*where) for where in np.ndindex(3, 3, 50, 3)}
    assert len(keys) == 3 * 3 * 50 * 3
    assert all(0 <= key < 2**63 for key in keys)
    assert sample_key(-1, 2, 3, -4) != sample_key(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("policy", "without"),
    [(None, {"mean"}), ("3a", set()), ("rand-m9-mstd0.5-inc1", {"color_jitter"})],
)
def test_views_of_equal_descriptions_are_equal(policy: str | None, without: set[str]) -> None:
    first = TrainView(size=(32, 32), auto_augment=policy, color_jitter=0.4)
    changes = {"mean": (0.9, 0.1, 0.5), "color_jitter": None}
    assert set(changes) - set(first.describe()) == without
    image = to_pixels(photo())
    for name, value in changes.items():
        second = TrainView(**{**asdict(first), name: value})
        views = [torch.stack([view.view(image, key) for key in range(32)]) for view in (first, second)]
        assert (first.describe() == second.describe()) == (name in without), name
        assert name not in without or torch.equal(*views), name
