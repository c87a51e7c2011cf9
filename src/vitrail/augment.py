"""One batch on its device: random erasing, Mixup and CutMix, soft targets; every draw follows from a key.

Shapes
    b images, c channels, h and w pixels, k classes
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)


def erase(images: Float[Tensor, "b c h w"], keys: Int[Tensor, " b"], probability: float) -> Float[Tensor, "b c h w"]:
    """Fill one random rectangle of some images with normal noise, in place: timm's RandomErasing in "pixel" mode.

    Args:
        images: Normalised, so that noise of unit variance looks like them.
        keys: One for each image, as the training view was drawn from.
        probability: Of erasing, for each image.
    """
    height, width = images.shape[-2:]
    noise = torch.Generator(images.device)
    for image, key in zip(images, keys.tolist(), strict=True):
        # the view was drawn from random.Random(key): the same draws again would tie the erasing to the crop
        box = _erased_box(random.Random(f"erase {key}"), height, width, probability)
        if box is not None:
            top, left, box_height, box_width = box
            shape = (images.shape[1], box_height, box_width)
            # drawn in one piece: filling a strided slice with normal_ is several times slower
            pixels = torch.randn(shape, generator=noise.manual_seed(key), device=images.device, dtype=images.dtype)
            image[:, top : top + box_height, left : left + box_width] = pixels
    return images


def _erased_box(rng: random.Random, height: int, width: int, probability: float) -> tuple[int, int, int, int] | None:
    """Return top, left, height and width, or None where the dice, or ten tries, say no."""
    if rng.random() >= probability:
        return None
    for _ in range(10):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])))
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return None


def soft_targets(labels: Int[Tensor, " b"], num_classes: int, smoothing: float = 0.0) -> Float[Tensor, "b k"]:
    """Turn labels into distributions that give `smoothing` away evenly over all classes."""
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
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Mix the batch with its own reverse, images in place: timm's Mixup in "batch" mode, for any number of images.

    Args:
        images: The batch.
        targets: Soft targets, mixed in the proportion of the images.
        mixup_alpha: Of the Beta distribution of Mixup's share; 0 turns Mixup off.
        cutmix_alpha: Of the Beta distribution of CutMix's area; 0 turns CutMix off.
        probability: That the batch is mixed at all.
        switch_probability: Of CutMix, where both are on.
        key: One for the batch on this process.
    """
    rng = np.random.default_rng(key)
    if (mixup_alpha <= 0 and cutmix_alpha <= 0) or rng.random() >= probability:
        return images, targets
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha <= 0 or rng.random() < switch_probability)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if use_cutmix:
        share = _paste(images, share, rng)
    else:
        partners = images.flip(0).mul_(1 - share)
        images.mul_(share).add_(partners)
    return images, targets * share + targets.flip(0) * (1 - share)


def _paste(images: Tensor, share: float, rng: np.random.Generator) -> float:
    """Copy a rectangle of about 1 - share of the area from each image's partner; return the share that is left."""
    height, width = images.shape[-2:]
    box_height, box_width = int(height * math.sqrt(1 - share)), int(width * math.sqrt(1 - share))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - box_height // 2, 0), min(y + (box_height + 1) // 2, height)
    left, right = max(x - box_width // 2, 0), min(x + (box_width + 1) // 2, width)
    images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)
