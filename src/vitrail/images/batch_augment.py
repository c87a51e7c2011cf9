"""Augmentation of one batch on its device: random erasing, Mixup, CutMix and label smoothing, each draw from a seed.

Shapes
    b images, c channels, h and w pixels, k classes
"""

from __future__ import annotations

import math
import random
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

ERASE_AREA = (0.02, 1 / 3)
"""Smallest and largest share of an image that is erased."""
ERASE_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width of an erased rectangle."""

EraseMode = Literal["pixel", "rand", "const"]
MixMode = Literal["batch", "pair", "elem"]
Box = tuple[int, int, int, int]
"""Top, bottom, left and right of a rectangle."""


def erase(
    images: Float[Tensor, "b c h w"],
    keys: Int[Tensor, " b"],
    probability: float,
    *,
    mode: EraseMode = "pixel",
    count: int = 1,
) -> Float[Tensor, "b c h w"]:
    """Fill random rectangles of some images, in place, as timm's RandomErasing does.

    Args:
        images: Normalised, so that noise of unit variance looks like them and 0 is their mean.
        keys: Seed of each image, from which its training view was drawn.
        probability: Probability that an image is erased.
        mode: Noise for each pixel, one random value for each channel of a rectangle (rand), or 0
            (const).
        count: Most rectangles of an image; it gets one to `count`, which together have the area of
            one.
    """
    channels, height, width = images.shape[1:]
    noise = torch.Generator(images.device)
    for image, key in zip(images, keys.tolist(), strict=True):
        # the view was drawn from random.Random(key): the same draws again would tie the erasing to
        # the crop
        boxes = _erased_boxes(random.Random(f"erase {key}"), height, width, probability, count)
        if boxes:
            noise.manual_seed(key)
        for top, bottom, left, right in boxes:
            if mode == "const":
                image[:, top:bottom, left:right] = 0
                continue
            shape = (channels, 1, 1)
            if mode == "pixel":
                shape = (channels, bottom - top, right - left)
            # drawn in one piece: filling a strided slice with normal_ is several times slower
            pixels = torch.randn(shape, generator=noise, device=images.device, dtype=images.dtype)
            image[:, top:bottom, left:right] = pixels
    return images


def _erased_boxes(
    rng: random.Random, height: int, width: int, probability: float, count: int
) -> list[Box]:
    """Draw the rectangles of an image; one that does not fit within ten tries is left out."""
    if rng.random() >= probability:
        return []
    number = rng.randint(1, count) if count > 1 else 1
    boxes: list[Box] = []
    for _ in range(number):
        for _ in range(10):
            area = rng.uniform(*ERASE_AREA) * height * width / number
            aspect = math.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])))
            box_height = round(math.sqrt(area * aspect))
            box_width = round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
                boxes.append((top, top + box_height, left, left + box_width))
                break
    return boxes


def make_soft_targets(
    labels: Int[Tensor, " b"], num_classes: int, smoothing: float = 0.0
) -> Float[Tensor, "b k"]:
    """Return one-hot targets with label smoothing: `smoothing` is spread evenly over all classes."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels.long()[:, None], 1 - smoothing + off)


def mix(
    images: Float[Tensor, "b c h w"],
    targets: Float[Tensor, "b k"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    switch_probability: float,
    key: int,
    mode: MixMode = "batch",
    minmax: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Mix the batch with its own reverse, images in place, as timm's Mixup does, for any number of images.

    Args:
        images: The batch.
        targets: Soft targets, mixed in the proportion of the images.
        mixup_alpha: Parameter of the Beta distribution of Mixup's share; 0 turns Mixup off.
        cutmix_alpha: Parameter of the Beta distribution of CutMix's area; 0 turns CutMix off.
        probability: Probability that the batch, pair or image is mixed at all.
        switch_probability: Probability of CutMix, where both are on.
        key: Seed of the batch on this rank.
        mode: Whether the draws are made once for the batch, for each pair of partners, or for each
            image (elem).
        minmax: Smallest and largest share of each side that CutMix takes, which turns CutMix on;
            None draws its area.
    """
    rng = np.random.default_rng(key)
    if minmax is not None:
        cutmix_alpha = 1.0
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    if mode != "batch":
        drawn = len(images) // 2 if mode == "pair" else len(images)
        by_paste, shares = _draw_each(
            drawn, mixup_alpha, cutmix_alpha, probability, switch_probability, rng
        )
        return _mix_each(images, targets, by_paste, shares, minmax, rng)
    if rng.random() >= probability:
        return images, targets
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha <= 0 or rng.random() < switch_probability)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if use_cutmix:
        size = (images.shape[2], images.shape[3])
        (top, bottom, left, right), share = _pasted_box(size, share, minmax, rng)
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    else:
        partners = images.flip(0).mul_(1 - share)
        images.mul_(share).add_(partners)
    return images, targets * share + targets.flip(0) * (1 - share)


def _draw_each(
    n: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    switch_probability: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Draw for each of n images whether CutMix mixes it, and the share that it keeps, 1 where it is left alone."""
    if mixup_alpha > 0 and cutmix_alpha > 0:
        by_paste = rng.random(n) < switch_probability
        pasted = rng.beta(cutmix_alpha, cutmix_alpha, n)
        blended = rng.beta(mixup_alpha, mixup_alpha, n)
        shares = np.where(by_paste, pasted, blended)
    else:
        by_paste = np.full(n, cutmix_alpha > 0)
        alpha = max(mixup_alpha, cutmix_alpha)
        shares = rng.beta(alpha, alpha, n)
    return by_paste, np.where(rng.random(n) < probability, shares, 1).astype(np.float32)


def _mix_each(
    images: Tensor,
    targets: Tensor,
    by_paste: NDArray[np.bool_],
    shares: NDArray[np.float32],
    minmax: tuple[float, float] | None,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner by a draw of its own; half as many draws are one for each pair."""
    n = len(images)
    partners = images.flip(0)
    kept = np.ones(n, np.float32)  # share of its own target that an image keeps
    blend = np.ones(n, np.float32)  # share of its own pixels, all over the image
    for number, (pastes, share) in enumerate(zip(by_paste, shares, strict=True)):
        if share == 1:
            continue
        both = [number] if len(shares) == n else [number, n - 1 - number]
        if pastes:
            size = (images.shape[2], images.shape[3])
            (top, bottom, left, right), share = _pasted_box(size, share, minmax, rng)
            for at in both:
                images[at, :, top:bottom, left:right] = partners[at, :, top:bottom, left:right]
        else:
            blend[both] = share
        kept[both] = share
    pixels = torch.from_numpy(blend).to(images.device, non_blocking=True)[:, None, None, None]
    images.mul_(pixels).add_(partners.mul_(1 - pixels))
    kept_share = torch.from_numpy(kept).to(targets.device, non_blocking=True)[:, None]
    return images, targets * kept_share + targets.flip(0) * (1 - kept_share)


def draw_box(
    size: tuple[int, int], alpha: float, probability: float, key: int
) -> tuple[Box, float] | None:
    """Draw a rectangle as CutMix does, and the share of the area that it leaves; None for none.

    Args:
        size: Height and width of what it is drawn over.
        alpha: Parameter of the Beta distribution of the share that it leaves.
        probability: Probability that there is one.
        key: Seed of the batch on this rank.
    """
    rng = np.random.default_rng(key)
    if rng.random() >= probability:
        return None
    (top, bottom, left, right), share = _pasted_box(size, float(rng.beta(alpha, alpha)), None, rng)
    return None if top >= bottom or left >= right else ((top, bottom, left, right), share)


def _pasted_box(
    size: tuple[int, int],
    share: float | np.float32,
    minmax: tuple[float, float] | None,
    rng: np.random.Generator,
) -> tuple[Box, float]:
    """Draw a rectangle of about 1 - share of the area, or of sides within `minmax`, and return the share it leaves."""
    height, width = size
    if minmax is None:
        side = np.sqrt(1 - share)
        box_height = int(height * side)
        box_width = int(width * side)
        # a rectangle around a random centre is cut at the image's edges
        y = int(rng.integers(height))
        x = int(rng.integers(width))
        top = max(y - box_height // 2, 0)
        bottom = min(y + (box_height + 1) // 2, height)
        left = max(x - box_width // 2, 0)
        right = min(x + (box_width + 1) // 2, width)
    else:
        box_height = _draw_side(height, *minmax, rng)
        box_width = _draw_side(width, *minmax, rng)
        top = int(rng.integers(height - box_height + 1))
        left = int(rng.integers(width - box_width + 1))
        bottom = top + box_height
        right = left + box_width
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def _draw_side(length: int, low: float, high: float, rng: np.random.Generator) -> int:
    """Draw the side of a rectangle, which a small image may leave but one choice."""
    smallest = int(length * low)
    return int(rng.integers(smallest, max(int(length * high), smallest + 1)))
