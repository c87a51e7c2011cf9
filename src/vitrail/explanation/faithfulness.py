"""Faithfulness of maps: whether a model's probability changes where a map says, and the map with the model.

What is measured
    Deletion and insertion (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421): the pixels that a map ranks
    highest are the first to be replaced by the image's mean colour, or to be put into the blurred image; the area
    under the probability is small, or large, if the map is right.
    SaCo (Wu et al., CVPR 2024, https://arxiv.org/abs/2404.01415): pixels are grouped by their value in the map, each
    group alone is replaced by the mean colour, and each pair of groups counts by the difference of its values, for
    the map where the group of larger value costs more probability, and against it where it costs less. From -1 to 1.
    Randomised weights (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292): rank correlation of a map with that of
    the model after the values of each of its parameters were shuffled, which keeps their sizes. A method whose map
    hardly changes shows the image and not the model.
    Pointing game (Zhang et al. 2016, https://arxiv.org/abs/1608.00507): whether a map's largest value is inside a mask,
    without a tolerance around it.

Where a map has one value for several pixels, these are taken in an order drawn by (seed, index of the image), so that
ties favour no corner.

Shapes
    b images, c channels, h and w of an image, n = h * w pixels, s steps or groups, k values
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

Model = TypeVar("Model", bound=nn.Module)
Score = Callable[[Tensor, Tensor], Tensor]
"""Returns the probability (b) of a class for each of normalised images (b, c, h, w), given indices of classes (b)."""

GROUPS = 10
"""Groups of pixels in SaCo, as in the paper."""
STEPS = 10
"""Steps from no pixel to all of them, in deletion and insertion."""
AT_ONCE = 32
"""Most changed images that are computed together."""
BLURRED_PARTS = 8
"""How many times the side of the blurring square goes into the shorter side of the image."""


def enlarge(maps: Float[Tensor, "b mh mw"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """Return maps at the size of their images, each value as a rectangle."""
    return interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]


def order_pixels(
    maps: Float[Tensor, "b h w"], indices: Sequence[int], seed: int = 0
) -> Int[Tensor, "b n"]:
    """Return the pixels of each map from its largest value to its least, equal ones as they are drawn.

    Args:
        maps: Maps at the size of their images.
        indices: Index of each image, which its draws follow from.
        seed: What the draws follow from, too.
    """
    values = maps.flatten(1)
    drawn = []
    for index in indices:
        drawn.append(np.random.default_rng([seed, index]).permutation(values.shape[1]))
    places = torch.from_numpy(np.stack(drawn)).to(values.device)
    sorted_places = values.gather(1, places).argsort(dim=1, descending=True, stable=True)
    return places.gather(1, sorted_places)


def mean_colour(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images that have the mean colour of each everywhere."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def blur(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images blurred twice by the mean over a square, beyond whose border the image is left out."""
    side = max(3, min(images.shape[2:]) // BLURRED_PARTS | 1)
    blurred = images
    for _ in range(2):
        blurred = avg_pool2d(blurred, side, stride=1, padding=side // 2, count_include_pad=False)
    return blurred


def follow(
    score: Score,
    start: Float[Tensor, "b c h w"],
    end: Float[Tensor, "b c h w"],
    classes: Int[Tensor, " b"],
    order: Int[Tensor, "b n"],
    steps: int = STEPS,
) -> Float[Tensor, "b s"]:
    """Return the probabilities of a class while the pixels of one image take the place of those of another.

    From images to their mean colour this is deletion, from blurred images to the images insertion.

    Args:
        score: Probability of a class for each image.
        start: Images at the first of the steps + 1 values.
        end: Images at the last of them.
        classes: Index of the class for each image.
        order: Pixels in the order in which they are replaced.
        steps: Steps in which they are.
    """
    changed = []
    for stop in _bounds(order.shape[1], steps):
        changed.append(_replace(start, end, order[:, :stop]))
    return _ask(score, changed, classes)


def measure_area(curves: Float[Tensor, "b s"]) -> Float[Tensor, " b"]:
    """Return the area under curves whose points lie evenly from 0 to 1."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1))


def measure_saco(
    score: Score,
    images: Float[Tensor, "b c h w"],
    others: Float[Tensor, "b c h w"],
    classes: Int[Tensor, " b"],
    maps: Float[Tensor, "b h w"],
    order: Int[Tensor, "b n"],
    groups: int = GROUPS,
) -> Float[Tensor, " b"]:
    """Return the salience-guided faithfulness coefficient (SaCo) of each map, NaN for an even one.

    Args:
        score: Probability of a class for each image.
        images: Normalised images.
        others: What the pixels of each group are replaced by, such as the mean colour.
        classes: Index of the class for each image.
        maps: Maps at the size of the images.
        order: Pixels of each map from its largest value to its least.
        groups: Groups that the pixels are cut into by their values.
    """
    ranked = maps.flatten(1).gather(1, order)
    bounds = _bounds(order.shape[1], groups)
    changed, values = [images], []
    for first, stop in itertools.pairwise(bounds):
        changed.append(_replace(images, others, order[:, first:stop]))
        values.append(ranked[:, first:stop].mean(dim=1))
    probabilities = _ask(score, changed, classes)
    lost = probabilities[:, :1] - probabilities[:, 1:]  # (b, s)
    of_group = torch.stack(values, dim=1)
    larger, smaller = torch.triu_indices(groups, groups, 1, device=lost.device)
    weights = of_group[:, larger] - of_group[:, smaller]
    is_right = lost[:, larger] >= lost[:, smaller]
    signed = torch.where(is_right, weights, -weights).sum(dim=1) / weights.abs().sum(dim=1)
    return torch.where(ranked[:, 0] > ranked[:, -1], signed, torch.nan)


def correlate_ranks(a: Float[Tensor, "b k"], b: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return Spearman's rank correlation of each row, NaN where one of the rows is even."""
    first, second = _centre(_rank(a)), _centre(_rank(b))
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1))


def shuffle_weights(model: Model, seed: int = 0) -> Model:
    """Return a copy of a model with the values of each trained parameter in an order drawn anew."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(copied.parameters()):
            if not parameter.requires_grad:  # such as a sinusoid of positions
                continue
            drawn = np.random.default_rng([seed, number]).permutation(parameter.numel())
            places = torch.from_numpy(drawn).to(parameter.device)
            parameter.copy_(parameter.flatten()[places].view_as(parameter))
    return copied


def point(maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return whether the largest value of each map is inside its mask; of several, the share that is."""
    is_largest = maps == maps.amax(dim=(1, 2), keepdim=True)
    return (is_largest & masks).sum(dim=(1, 2)) / is_largest.sum(dim=(1, 2))


def share_inside(maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return the share of the positive part of each map that is inside its mask, NaN where nothing is positive."""
    positive = maps.clamp(min=0)
    return (positive * masks).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))


def draw_random_maps(
    indices: Sequence[int], size: tuple[int, int], seed: int = 0
) -> Float[Tensor, "b h w"]:
    """Return maps of independent values from 0 to 1, which know nothing of image and model."""
    drawn = []
    for index in indices:
        # the draws of `order_pixels` for the same image are others
        drawn.append(np.random.default_rng([seed, index, 1]).random(size, dtype=np.float32))
    return torch.from_numpy(np.stack(drawn))


def centre_maps(count: int, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """Return maps that fall evenly from 1 in the middle of the image to 0 in its corners."""
    rows, columns = (torch.linspace(-1, 1, side) for side in size)
    distance = (rows[:, None] ** 2 + columns[None] ** 2).sqrt() / 2**0.5
    return (1 - distance).expand(count, *size)


def _bounds(count: int, parts: int) -> list[int]:
    """Return where parts of about the same size begin, from 0 to the end of the last."""
    return [round(count * part / parts) for part in range(parts + 1)]


def _replace(images: Tensor, others: Tensor, pixels: Tensor) -> Tensor:
    """Return images with some of their pixels (b, k) taken from others."""
    chosen = torch.zeros(len(images), images[0, 0].numel(), dtype=torch.bool, device=images.device)
    chosen.scatter_(1, pixels, True)
    return torch.where(chosen.view(-1, 1, *images.shape[2:]), others, images)


def _ask(score: Score, changed: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Return the probability of each image in each of its changed forms (b, s), some forms at a time."""
    each = max(1, AT_ONCE // len(classes))
    answers = []
    with torch.no_grad():
        for first in range(0, len(changed), each):
            forms = changed[first : first + each]
            repeated = classes.repeat(len(forms))
            answers.append(score(torch.cat(list(forms)), repeated).view(len(forms), -1))
    return torch.cat(answers).T


def _rank(values: Tensor) -> Tensor:
    """Return the rank of each value (b, k) in its row, the mean of their ranks for equal ones."""
    ranks = rankdata(values.cpu().numpy(), axis=1).astype(np.float64)  # scipy 1.18 keeps float32
    return torch.from_numpy(ranks).to(values.device)


def _centre(ranks: Tensor) -> Tensor:
    return ranks - ranks.mean(dim=1, keepdim=True)
