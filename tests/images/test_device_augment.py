"""RandAugment of whole batches beside Pillow's, image by image."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torch import Tensor

from support.forked import python
from support.images import photo, pictures
from vitrail.errors import ConfigError
from vitrail.images.device_augment import COLOURS, DeviceAugment, apply_operations
from vitrail.images.fast_policy import MOVES, Drawn, split_key
from vitrail.images.train_view import TrainView

FILL = (124, 116, 104)
POLICY = "rand-m9-mstd0.5-inc1"
WHOLE = {
    "posterize": range(1, 9),
    "solarize": range(0, 257, 32),
    "solarize_add": range(0, 129, 32),
}
"""Strengths of operations that take whole numbers."""
WITHOUT = ("auto_contrast", "equalize", "invert")
"""Operations that have no strength."""


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def batch(height: int = 37, width: int = 53, count: int = 9) -> Tensor:
    """Return images of odd sides that differ in contrast, noise and colours."""
    rng = np.random.default_rng(0)
    whole = np.asarray(photo(height + count, width))
    images = [whole[start : start + height] // (1 + start % 3) for start in range(count)]
    images[1] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    images[2] = np.full((height, width, 3), 200, dtype=np.uint8)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def compare(name: str, strengths: list[float], resample: int) -> np.ndarray:
    """Return how many levels each value is apart from Pillow's, for all strengths."""
    apart = []
    how = {"fillcolor": FILL, "resample": Image.Resampling(resample)}
    for picture in pictures():
        for strength in strengths:
            drawn = [(Drawn(name, float(strength), resample if name in MOVES else 0),)]
            ours = apply_operations(to_tensor(picture)[None], drawn, FILL)[0].permute(1, 2, 0).numpy()
            given = () if name in WITHOUT else (strength,)
            theirs = np.asarray(getattr(auto_augment, name)(picture, *given, **how)).astype(int)
            apart.append(np.abs(ours - theirs).ravel())
    return np.concatenate(apart)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_become_what_pillow_makes_them(name: str) -> None:
    strengths = WHOLE.get(name, [0.0] if name in WITHOUT else [0.0, 0.1, 0.19, 0.5, 1.0, 1.3, 1.9, 2.5])
    apart = compare(name, list(strengths), 0)
    assert apart.max() <= (name == "auto_contrast")
    assert np.count_nonzero(apart) <= len(apart) / 100


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", MOVES)
def test_pictures_are_moved_as_pillow_moves_them_but_for_a_level_in_few_places(name: str, resample: int) -> None:
    rng, largest = random.Random(name), 0.5
    if name == "rotate":
        largest = 40
    elif name.endswith("abs"):
        largest = 300
    strengths = [0.0, 1.0, 0.5, largest, -largest, *(rng.uniform(-largest, largest) for _ in range(8))]
    apart = compare(name, strengths, resample)
    # where a centre falls on the edge to a rounding, one of the two fills the pixel
    assert np.count_nonzero(apart > 1) <= len(apart) / 2000
    assert np.count_nonzero(apart) <= len(apart) / 40


@pytest.mark.parametrize("interpolation", ["random", "bicubic", "bilinear"])
def test_an_image_is_the_same_whichever_others_are_in_its_batch(interpolation) -> None:
    images, keys = batch(), torch.arange(9) * 2**58
    view = TrainView(size=(37, 53), auto_augment="rand-m9-mstd0.5-inc1-n4", interpolation=interpolation, on_device=True)
    augment = DeviceAugment(view, torch.device("cpu"))
    before = images.clone()
    together = augment(images, keys)
    assert torch.equal(images, before)
    assert (together != images).flatten(1).any(1).sum() >= 7
    for order in (torch.arange(9).flip(0), torch.tensor([4]), torch.tensor([0, 7, 2])):
        assert torch.equal(augment(images[order], keys[order]), together[order])


@pytest.mark.parametrize("policy", [POLICY, "rand-m5-n3-p0.9-tweights", "rand-m7-mstd101-mmax12"])
def test_the_draws_are_those_of_timm(policy: str) -> None:
    view = TrainView(size=(96, 160), auto_augment=policy, on_device=True)
    keys = [0, 1, 2**40, 2**62 + 7, *range(50, 70)]
    drawn = view.draw_operations(keys)
    options = {"interpolation": "random", "auto_augment": policy, "color_jitter": None}
    timms = create_transform(96, is_training=True, separate=True, **options)[1]
    picture = pictures()[1]
    for key, operations in zip(keys, drawn, strict=True):
        random.seed(f"augment {key}"), np.random.seed(split_key(key))
        expected, found = np.asarray(timms(picture)), picture
        for name, value, resample in operations:
            whole = int(value) if name in WHOLE else value
            given = () if name in WITHOUT else (whole,)
            filling = {"fillcolor": view.fill, "resample": Image.Resampling(resample)} if name in MOVES else {}
            found = getattr(auto_augment, name)(found, *given, **filling)
        assert np.array_equal(expected, np.asarray(found))


def test_no_random_state_is_touched_by_the_draws(tmp_path: Path) -> None:
    # in a process of its own: the checks of types in this one draw from `random` too
    code = """
import random, numpy, torch
from vitrail.images.train_view import TrainView
view = TrainView(size=(96, 160), auto_augment="rand-m9-mstd0.5-inc1", on_device=True)
view.draw_operations([0])  # imports timm
states = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
before = states()
drawn = view.draw_operations(range(50))
print(before == states(), len(set(drawn)) > 30)
"""
    script = tmp_path / "draw.py"
    script.write_text(code)
    done = python(script)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_loader_leaves_the_policy_to_the_device_and_the_description_says_so() -> None:
    image = to_tensor(photo())
    plain = TrainView(size=(32, 48))
    view = TrainView(size=(32, 48), auto_augment=POLICY, on_device=True)
    assert torch.equal(view.view(image, 5), plain.view(image, 5))
    assert view.describe() == TrainView(size=(32, 48), auto_augment=POLICY).describe() | {"on_device": True}


def test_a_batch_without_operations_comes_back_as_it_is() -> None:
    images = batch()
    assert torch.equal(apply_operations(images, [()] * 9, FILL), images)
    assert apply_operations(images[:0], [], FILL).shape == (0, 3, 37, 53)


@pytest.mark.parametrize("policy", ["augmix-m3-w3", "original-mstd0.5", "v0", "3a", "rand-m9-t3a", "rand-t3aw-n1"])
def test_what_a_device_does_not_compute_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainView(size=(8, 8), auto_augment=policy, on_device=True)
    assert str(caught.value) == (
        f"augment.device=true computes RandAugment alone, and augment.auto_augment is {policy!r}; take one such as "
        "rand-m9-mstd0.5-inc1 (the sets t3a and t3aw blur, which is left to the loader), or set augment.device=false"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_pixels_of_the_cpu_but_for_a_level_in_few_places() -> None:
    images, keys = batch(224, 224, 64), torch.arange(64)
    view = TrainView(size=(224, 224), auto_augment=POLICY, on_device=True)
    on_cpu, on_gpu = (DeviceAugment(view, torch.device(name))(images, keys).cpu().int() for name in ("cpu", "cuda"))
    # where a level differs, a following equalization or solarization may make many of it
    assert ((on_cpu - on_gpu).abs() > 1).float().mean() < 1e-3
