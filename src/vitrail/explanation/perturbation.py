"""Integrated gradients and occlusion, by captum: what a model's logit loses with parts of an image.

Both compare with an even image of the mean colour, which is 0 for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from vitrail.errors import MissingExtra
from vitrail.explanation.relevance import in_evaluation
from vitrail.models.family import VisionModel

STEPS = 32
"""Images between the even one and the image itself at which gradients are summed."""
AT_ONCE = 8
"""Changed images that are computed together, for each image."""
PARTS = 8
"""How many times the side of an occluded square goes into the shorter side of the image."""


def integrate_gradients(
    model: VisionModel, images: Tensor, classes: Tensor
) -> Mapping[str, Tensor]:
    """Return integrated gradients (Sundararajan et al. 2017), summed over channels.

    Their sum is about the class's logit, less that of an even image.

    Args:
        model: Any model.
        images: Normalised images (b, c, h, w).
        classes: Index of the class for each image (b).

    Raises:
        MissingExtra: captum is not installed.
    """
    _require_captum()
    from captum.attr import IntegratedGradients

    with torch.enable_grad(), in_evaluation(model):
        shares = IntegratedGradients(model).attribute(
            images,
            baselines=torch.zeros_like(images),
            target=classes,
            n_steps=STEPS,
            internal_batch_size=max(AT_ONCE, len(images)),
        )
    return {"pixels": shares.detach().sum(dim=1).to(images.dtype)}


def occlude(
    answer: Callable[[Tensor], Tensor], images: Tensor, classes: Tensor
) -> Mapping[str, Tensor]:
    """Return what the class's logit loses where a square is covered, averaged over the squares of each place.

    Squares overlap by half. The map has as many places as there are steps; a pixel beyond the last
    whole square counts to that.

    Args:
        answer: Anything that turns normalised images into logits: a model, or an exported file.
        images: Normalised images (b, c, h, w).
        classes: Index of the class for each image (b).

    Raises:
        MissingExtra: captum is not installed.
    """
    _require_captum()
    from captum.attr import Occlusion

    channels, height, width = images.shape[1:]
    side = max(2, min(height, width) // PARTS)
    with torch.no_grad():
        lost = Occlusion(answer).attribute(
            images,
            sliding_window_shapes=(channels, side, side),
            strides=(channels, max(1, side // 2), max(1, side // 2)),
            baselines=0.0,
            target=classes,
            perturbations_per_eval=AT_ONCE,
        )
    return {"pixels": lost[:, 0].to(images.dtype)}


def _require_captum() -> None:
    if find_spec("captum") is None:
        raise MissingExtra(
            "integrated-gradients and occlusion need captum, which is not installed; run: pip "
            "install 'vitrail[explain]'"
        )
