"""Faithfulness of maps: each measure beside a plain form of it, and on maps whose value is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from support.explained_models import build, random_images
from vitrail.explanation.faithfulness import (
    blur,
    centre_maps,
    correlate_ranks,
    draw_random_maps,
    enlarge,
    follow,
    mean_colour,
    measure_area,
    measure_saco,
    order_pixels,
    point,
    share_inside,
    shuffle_weights,
)

SIZE = (12, 10)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = torch.rand(SIZE, generator=GENERATOR)
IMAGES = torch.rand(3, 2, *SIZE, generator=GENERATOR)
CLASSES = torch.tensor([0, 1, 1])


def score(images: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of class 1, or of class 0, which grows with the weighted sum of the pixels."""
    logits = 0.2 * (images * WEIGHTS).sum((1, 2, 3)) - 2
    return torch.where(classes == 1, logits, -logits).sigmoid()


def contributions() -> Tensor:
    """Return what each pixel adds to the logit of its image's class, beyond the mean colour: the perfect map."""
    added = ((IMAGES - mean_colour(IMAGES)) * WEIGHTS).sum(1)
    return torch.where(CLASSES[:, None, None] == 1, added, -added)


def saco_plainly(image: Tensor, label: Tensor, values: Tensor, order: Tensor, groups: int) -> float:
    """Return SaCo as the paper's algorithm has it, pair by pair."""
    flat, mean = image.flatten(1), image.mean((1, 2))
    before = score(image[None], label[None]).item()
    lost, salience = [], []
    for number in range(groups):
        first, stop = round(len(order) * number / groups), round(len(order) * (number + 1) / groups)
        pixels = order[first:stop]
        changed = flat.clone()
        changed[:, pixels] = mean[:, None]
        lost.append(before - score(changed.view_as(image)[None], label[None]).item())
        salience.append(values.flatten()[pixels].mean().item())
    total = weights = 0.0
    for i in range(groups):
        for j in range(i + 1, groups):
            weight = salience[i] - salience[j]
            total += weight if lost[i] >= lost[j] else -weight
            weights += abs(weight)
    return total / weights


@pytest.mark.parametrize("groups", [4, 7, 10])
def test_saco_is_that_of_the_papers_algorithm(groups: int) -> None:
    maps = draw_random_maps([4, 5, 6], SIZE)
    order = order_pixels(maps, [4, 5, 6])
    found = measure_saco(score, IMAGES, mean_colour(IMAGES), CLASSES, maps, order, groups)
    expected = [saco_plainly(*each, groups) for each in zip(IMAGES, CLASSES, maps, order, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_saco_is_one_for_what_pixels_add_and_minus_one_for_its_opposite() -> None:
    maps = contributions()
    assert measure_saco(score, IMAGES, mean_colour(IMAGES), CLASSES, maps, order_pixels(maps, [0, 1, 2])).tolist() == [
        1,
        1,
        1,
    ]
    turned = measure_saco(score, IMAGES, mean_colour(IMAGES), CLASSES, -maps, order_pixels(-maps, [0, 1, 2]))
    assert turned.tolist() == [-1, -1, -1]


def test_saco_of_random_maps_is_about_zero_and_of_an_even_one_nothing() -> None:
    indices = range(60)
    images, classes = IMAGES[:1].expand(60, -1, -1, -1), CLASSES[:1].expand(60)
    maps = draw_random_maps(indices, SIZE)
    found = measure_saco(score, images, mean_colour(images), classes, maps, order_pixels(maps, indices))
    assert abs(found.mean()) < 0.2
    assert found.abs().max() < 1
    even = torch.full((1, *SIZE), 0.3)
    assert (
        measure_saco(score, IMAGES[:1], mean_colour(IMAGES[:1]), CLASSES[:1], even, order_pixels(even, [0]))
        .isnan()
        .all()
    )


def curve_plainly(start: Tensor, end: Tensor, label: Tensor, order: Tensor, steps: int) -> list[float]:
    found = []
    for step in range(steps + 1):
        changed = start.flatten(1).clone()
        for pixel in order[: round(len(order) * step / steps)]:
            changed[:, pixel] = end.flatten(1)[:, pixel]
        found.append(score(changed.view_as(start)[None], label[None]).item())
    return found


@pytest.mark.parametrize("steps", [3, 10, 40])
def test_deletion_and_insertion_replace_one_pixel_after_the_other(steps: int) -> None:
    order = order_pixels(draw_random_maps([0, 1, 2], SIZE), [0, 1, 2])
    for start, end in ((IMAGES, mean_colour(IMAGES)), (blur(IMAGES), IMAGES)):
        curves = follow(score, start, end, CLASSES, order, steps)
        expected = [curve_plainly(*each, steps) for each in zip(start, end, CLASSES, order, strict=True)]
        torch.testing.assert_close(curves, torch.tensor(expected))
        plain = np.trapezoid(np.array(expected), dx=1 / steps, axis=1)
        np.testing.assert_allclose(measure_area(curves), plain, rtol=1e-5)


def test_what_pixels_add_deletes_fastest_and_inserts_fastest() -> None:
    areas = {}
    perfect, random = contributions(), draw_random_maps([0, 1, 2], SIZE)
    for name, maps in {"perfect": perfect, "random": random, "opposite": -perfect}.items():
        order = order_pixels(maps, [0, 1, 2])
        deleted = measure_area(follow(score, IMAGES, mean_colour(IMAGES), CLASSES, order))
        inserted = measure_area(follow(score, mean_colour(IMAGES), IMAGES, CLASSES, order))
        areas[name] = (deleted, inserted)
    for better, worse in (("perfect", "random"), ("random", "opposite")):
        assert (areas[better][0] < areas[worse][0]).all()
        assert (areas[better][1] > areas[worse][1]).all()


def test_pixels_of_equal_value_are_drawn_by_seed_and_index() -> None:
    maps = enlarge(torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]), (4, 4)).expand(2, 4, 4)
    order = order_pixels(maps, [3, 8])
    ranked = maps.flatten(1).gather(1, order)
    assert ranked[0].tolist() == [3.0] * 4 + [2.0] * 4 + [1.0] * 4 + [0.0] * 4
    assert order.sort(1).values.tolist() == [list(range(16))] * 2
    assert order[0].tolist() != order[1].tolist()
    assert torch.equal(order_pixels(maps[1:], [8])[0], order[1])
    assert not torch.equal(order_pixels(maps[1:], [8], seed=1)[0], order[1])
    assert torch.equal(draw_random_maps([3, 8], SIZE)[1], draw_random_maps([8], SIZE)[0])


def test_rank_correlation_is_scipys_with_ties() -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 6, (5, 40)).astype(np.float32)
    b = generator.integers(0, 9, (5, 40)).astype(np.float32) - a
    found = correlate_ranks(torch.from_numpy(a), torch.from_numpy(b))
    for row, one in enumerate(found):
        expected, _ = spearmanr(a[row], b[row])
        assert one.item() == pytest.approx(expected, abs=1e-12)
    rising = torch.arange(6.0)[None]
    assert correlate_ranks(rising, rising.exp()).item() == pytest.approx(1)
    assert correlate_ranks(rising, -rising).item() == pytest.approx(-1)
    assert correlate_ranks(rising, torch.zeros(1, 6)).isnan().all()


def test_a_blurred_image_has_its_mean_and_no_detail() -> None:
    even = torch.full((1, 3, 9, 17), 0.7)
    torch.testing.assert_close(blur(even), even)
    striped = torch.ones(1, 1, 32, 32)
    striped[..., ::2] = 0
    assert blur(striped)[..., 4:-4].std() < 0.1 * striped.std()


@pytest.mark.parametrize("name", ["tnt_ti_patch16_224", "t2t_vit_7", "twins_svt_small"])
def test_shuffled_weights_are_the_same_numbers_elsewhere(name: str) -> None:
    model = build(name)
    images = random_images(model)
    before = {place: one.clone() for place, one in model.state_dict().items()}
    shuffled = shuffle_weights(model)
    with torch.no_grad():
        assert not torch.allclose(model(images), shuffled(images), atol=1e-2)
        assert torch.equal(shuffled(images), shuffle_weights(model)(images))
        assert not torch.equal(shuffled(images), shuffle_weights(model, seed=1)(images))
    for place, parameter in shuffled.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, before[place].flatten().sort().values)
        assert parameter.requires_grad or torch.equal(parameter, before[place])
    assert all(torch.equal(one, before[place]) for place, one in model.state_dict().items())


def test_pointing_and_the_share_inside_a_mask() -> None:
    maps = torch.tensor([[[4.0, -3.0], [1.0, 0.0]], [[2.0, 2.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[True, True], [False, False]]).expand(3, 2, 2)
    torch.testing.assert_close(point(maps, masks), torch.tensor([1, 2 / 3, 0.5]))
    shares = share_inside(maps, masks)
    torch.testing.assert_close(shares[:2], torch.tensor([4 / 5, 2 / 3]))
    assert shares[2].isnan()


def test_the_centre_map_is_largest_in_the_middle() -> None:
    (one, _) = centre_maps(2, (5, 7))
    assert one[2, 3] == 1
    assert one[0, 0].item() == pytest.approx(0)
    assert torch.equal(one, one.flip(0, 1))
