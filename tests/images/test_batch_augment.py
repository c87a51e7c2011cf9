"""One batch: random erasing and mixing against timm's, and draws that follow from keys."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from timm.data import random_erasing
from timm.data.mixup import Mixup, mixup_target

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import DataSection
from vitrail.config.training_sections import AugmentSection, BalanceSection
from vitrail.data.loader import Batch
from vitrail.distributed.processes import processes
from vitrail.images.batch_augment import EraseMode, MixMode, erase, make_soft_targets, mix
from vitrail.images.preprocess import Preprocess
from vitrail.training.class_balance import build_balance
from vitrail.training.losses import SingleLabelLoss
from vitrail.training.step import StepContext, prepare


def erased_boxes(keys: range, size: tuple[int, int] = (60, 80)) -> list[tuple[float, float]]:
    """Return area share and aspect of each erased box."""
    images = erase(torch.full((len(keys), 3, *size), 9.0), torch.tensor(list(keys)), 1.0)
    boxes = []
    for image in images:
        changed = image[0] != 9
        rows, columns = changed.any(1).sum().item(), changed.any(0).sum().item()
        assert changed.sum() == rows * columns
        assert (image != 9).sum() == 3 * rows * columns
        boxes.append((rows * columns / (size[0] * size[1]), rows / columns))
    return boxes


def test_erased_boxes_have_timms_sizes():
    areas, aspects = zip(*erased_boxes(range(400)), strict=True)
    assert 0.015 < min(areas) < 0.04
    assert 0.28 < max(areas) < 0.345
    assert 0.27 < min(aspects) < 0.36
    assert 2.8 < max(aspects) < 3.6
    assert abs(np.log(aspects).mean()) < 0.15
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 0.015


def test_erased_pixels_are_normal_noise():
    images = erase(torch.full((200, 3, 32, 32), 99.0), torch.arange(200), 1.0)
    noise = images[images != 99]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_erasing_happens_as_often_as_asked():
    def share(probability: float) -> float:
        images = erase(torch.full((1000, 1, 16, 16), 9.0), torch.arange(1000), probability)
        return (images != 9).flatten(1).any(1).float().mean().item()

    assert share(0.0) == 0
    assert abs(share(0.25) - 0.25) < 0.04
    assert share(1.0) == 1


def test_erasing_follows_the_image_not_its_place_or_the_global_state():
    images, keys = torch.rand(8, 3, 24, 24), torch.arange(8) + 2**60
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = erase(images.clone(), keys, 0.6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(erase(images.flip(0), keys.flip(0), 0.6), whole.flip(0))
    assert torch.equal(torch.cat([erase(images[i : i + 1].clone(), keys[i : i + 1], 0.6) for i in range(8)]), whole)
    assert erase(images[:0], keys[:0], 1.0).shape == (0, 3, 24, 24)


def test_erasing_writes_in_place_and_leaves_single_pixels_alone():
    images = torch.zeros(2, 3, 16, 16)
    assert erase(images, torch.tensor([1, 2]), 1.0) is images
    assert (erase(torch.full((4, 3, 1, 1), 9.0), torch.arange(4), 1.0) == 9).all()


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(60, 80), (4, 3)])
def test_erasing_is_timms_for_the_same_draws(
    mode: EraseMode, count: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.full((40, 3, *size), 9.0)
    ours = erase(images.clone(), torch.arange(40), 0.7, mode=mode, count=count)
    theirs = random_erasing.RandomErasing(0.7, mode=mode, max_count=count, device="cpu")
    for key, image in enumerate(images):
        monkeypatch.setattr(random_erasing, "random", random.Random(f"erase {key}"))
        torch.manual_seed(key)
        assert torch.equal(theirs(image), ours[key])
    assert (ours != 9).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_timms(smoothing):
    labels = torch.tensor([0, 3, 4])
    targets = make_soft_targets(labels, 5, smoothing)
    torch.testing.assert_close(targets, mixup_target(labels, 5, 1.0, smoothing))
    torch.testing.assert_close(targets.sum(1), torch.ones(3))


class Given(Mixup):
    """timm's Mixup with a given share, without drawing."""

    def __init__(self, share: float) -> None:
        super().__init__(mixup_alpha=1.0, num_classes=5, label_smoothing=0.1)
        self.share = share

    def _params_per_batch(self):
        return self.share, False


BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "probability": 1.0, "switch_probability": 0.5}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("key", range(5))
def test_mixup_is_timms_for_the_same_share(key):
    images = torch.randn(6, 3, 8, 8)
    mixed, targets = mix(images.clone(), make_soft_targets(LABELS, 5, 0.1), **BOTH | {"cutmix_alpha": 0.0}, key=key)
    rng = np.random.default_rng(key)
    rng.random()
    theirs, their_targets = Given(float(rng.beta(0.8, 0.8)))(images.clone(), LABELS)
    torch.testing.assert_close(mixed, theirs)
    torch.testing.assert_close(targets, their_targets)


@pytest.mark.parametrize("key", range(30))
def test_cutmix_pastes_one_box_and_weighs_it_by_its_clipped_area(key):
    images = torch.arange(6.0).view(6, 1, 1, 1).repeat(1, 3, 20, 30)
    mixed, targets = mix(images.clone(), make_soft_targets(LABELS, 5, 0.1), **BOTH | {"mixup_alpha": 0.0}, key=key)
    pasted = (mixed != images)[0, 0]
    rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
    assert pasted.sum() == rows * columns
    assert torch.equal(mixed, torch.where(pasted, images.flip(0), images))
    torch.testing.assert_close(targets, mixup_target(LABELS, 5, 1 - rows * columns / 600, 0.1))
    rng = np.random.default_rng(key)
    rng.random()
    side = np.sqrt(1 - rng.beta(1.0, 1.0))
    assert rows <= int(20 * side)
    assert columns <= int(30 * side)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    ("mixup_alpha", "cutmix_alpha", "minmax"),
    [(0.8, 0.0, None), (0.0, 1.0, None), (0.8, 1.0, None), (0.8, 0.0, (0.2, 0.9)), (0.0, 1.0, (0.2, 0.9))],
)
def test_every_way_of_mixing_is_timms_for_the_same_draws(
    mode: MixMode,
    mixup_alpha: float,
    cutmix_alpha: float,
    minmax: tuple[float, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.randn(6, 3, 20, 30)
    theirs = Mixup(mixup_alpha, cutmix_alpha, minmax, prob=0.8, mode=mode, label_smoothing=0.1, num_classes=5)
    mixed = 0
    for key in range(12):
        found, targets = mix(
            images.clone(), make_soft_targets(LABELS, 5, 0.1), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha,
            probability=0.8, switch_probability=0.5, key=key, mode=mode, minmax=minmax,
        )  # fmt: skip
        rng = np.random.default_rng(key)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "rand", rng.random)
            patch.setattr(np.random, "beta", lambda a, b, size=None, rng=rng: rng.beta(a, b, size))
            patch.setattr(np.random, "randint", lambda low, high, size=None, rng=rng: rng.integers(low, high, size))
            expected, expected_targets = theirs(images.clone(), LABELS)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(targets, expected_targets)
        mixed += not torch.equal(found, images)
    assert mixed > 4


def test_a_rectangle_fits_into_the_smallest_image() -> None:
    for key in range(20):
        mix(torch.randn(2, 1, 3, 1), torch.eye(2), **BOTH | {"mixup_alpha": 0.0}, key=key, minmax=(0.4, 0.5))


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_an_odd_image_is_its_own_partner(mode: MixMode) -> None:
    images, targets = torch.randn(5, 3, 9, 9), torch.eye(5)
    for key in range(10):
        mixed, shares = mix(images.clone(), targets, **BOTH, key=key, mode=mode)
        torch.testing.assert_close(mixed[2], images[2])
        torch.testing.assert_close(shares[2], targets[2])
        assert not torch.equal(mixed[[0, 1, 3, 4]], images[[0, 1, 3, 4]])


def erased_shares(key: int | None, **augment: object) -> list[bool]:
    """Say of each of 200 black images, prepared for a training step, whether any pixel is not black."""
    section = AugmentSection(erase_prob=0.25, cutmix=1.0, label_smoothing=0.1, **augment)  # pyright: ignore[reportArgumentType]
    config = TrainConfig(data=DataSection(name="digits"), augment=section)
    batch = Batch(
        images=torch.zeros(200, 3, 32, 32, dtype=torch.uint8),
        labels=torch.arange(200) % 5,
        indices=torch.arange(200),
        keys=torch.arange(200),
        bad=[],
    )
    objective = SingleLabelLoss(build_balance(BalanceSection(), np.full(5, 40), torch.device("cpu")), 0.1)
    size = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    with processes("float32", "cpu") as accelerator:
        context = StepContext(config=config, accelerator=accelerator, preprocess=size, objective=objective)
        images, targets = prepare(context, batch, key)
    if key is None:
        torch.testing.assert_close(targets, make_soft_targets(batch.labels, 5, 0.1))
    return (images != 0).flatten(1).any(1).tolist()


def test_what_is_erased_before_the_mixing_is_carried_into_other_images() -> None:
    alone = erased_shares(None)
    assert erased_shares(7, erase="after_mix") == alone
    carried = erased_shares(7, erase="before_mix")
    assert sum(carried) > 1.2 * sum(alone)


def test_without_a_key_nothing_is_mixed_and_labels_stay_smoothed() -> None:
    assert erased_shares(None) == erased_shares(None, erase="after_mix")


def test_probabilities_of_mixing_and_switching_are_obeyed():
    def kind(key: int, **options: float) -> str:
        images = torch.arange(2.0).view(2, 1, 1, 1).repeat(1, 1, 16, 16)
        mixed, _ = mix(images.clone(), torch.eye(2), **BOTH | options, key=key)
        return (
            "none"
            if torch.equal(mixed, images)
            else "cutmix"
            if set(mixed.unique().tolist()) == {0.0, 1.0}
            else "mixup"
        )

    assert {kind(key, probability=0.0) for key in range(50)} == {"none"}
    kinds = [kind(key, probability=0.5, switch_probability=0.25) for key in range(600)]
    shares = {name: kinds.count(name) / 600 for name in ("none", "cutmix", "mixup")}
    assert abs(shares["none"] - 0.5) < 0.07
    assert abs(shares["cutmix"] - 0.125) < 0.05
    assert abs(shares["mixup"] - 0.375) < 0.06


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_any_batch_size_mixes_and_targets_stay_distributions(n):
    for key in range(10):
        images, targets = mix(torch.randn(n, 3, 9, 9), make_soft_targets(torch.arange(n) % 5, 5, 0.1), **BOTH, key=key)
        assert images.shape == (n, 3, 9, 9)
        torch.testing.assert_close(targets.sum(1), torch.ones(n))


def test_mixing_off_returns_the_batch_and_a_key_repeats_itself():
    images, targets = torch.randn(4, 3, 8, 8), torch.eye(4)
    off = mix(images, targets, mixup_alpha=0.0, cutmix_alpha=0.0, probability=1.0, switch_probability=0.5, key=1)
    assert off[0] is images
    assert off[1] is targets
    state = np.random.get_state()[1].tolist()
    first, second = (mix(images.clone(), targets, **BOTH, key=2**62) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert np.random.get_state()[1].tolist() == state
