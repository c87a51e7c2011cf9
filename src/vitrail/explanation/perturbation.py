"""Integrated gradients and occlusion, by captum: what a model's logit loses with parts of an image.

Both compare with an even image of the mean colour, which is 0 for the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vitrail.errors import MissingExtra
from vitrail.explanation.relevance import in_evaluation
from vitrail.explanation.target import Classes, settle_classes, to_evidence

STEPS = 32
"""Images between the even one and the image itself at which gradients are summed."""
AT_ONCE = 8
"""Changed images that are computed together, for each image."""
PARTS = 8
"""How many times the side of an occluded square goes into the shorter side of the image."""


def integrate_gradients(
    answer: Callable[[Tensor], Tensor], images: Tensor, classes: Classes
) -> Mapping[str, Tensor]:
    """Return integrated gradients (Sundararajan et al. 2017), summed over channels.

    Their sum is about the class's logit, less that of an even image.

    Args:
        answer: Any model, or what passes images on to one, with gradients.
        images: Normalised images (b, c, h, w).
        classes: The class for each image.

    Raises:
        MissingExtra: captum is not installed.
    """
    require_captum()
    from captum.attr import IntegratedGradients

    with torch.enable_grad(), _in_evaluation(answer):
        chosen = _settle(answer, images, classes)
        shares = IntegratedGradients(_evidence_for(answer, chosen)).attribute(
            images,
            baselines=torch.zeros_like(images),
            target=chosen,
            n_steps=STEPS,
            internal_batch_size=max(AT_ONCE, len(images)),
        )
    return {"pixels": shares.detach().sum(dim=1).to(images.dtype)}


def occlude(
    answer: Callable[[Tensor], Tensor], images: Tensor, classes: Classes
) -> Mapping[str, Tensor]:
    """Return what the class's logit loses where a square is covered, averaged over the squares of each place.

    Squares overlap by half. The map has as many places as there are steps; a pixel beyond the last
    whole square counts to that.

    Args:
        answer: Anything that turns normalised images into logits: a model, or an exported file.
        images: Normalised images (b, c, h, w).
        classes: The class for each image.

    Raises:
        MissingExtra: captum is not installed.
    """
    require_captum()
    from captum.attr import Occlusion

    channels, height, width = images.shape[1:]
    side, stride = _square_of(height, width)
    with torch.no_grad(), _in_evaluation(answer):
        chosen = _settle(answer, images, classes)
        lost = Occlusion(_evidence_for(answer, chosen)).attribute(
            images,
            sliding_window_shapes=(channels, side, side),
            strides=(channels, stride, stride),
            baselines=0.0,
            target=chosen,
            perturbations_per_eval=AT_ONCE,
        )
    return {"pixels": lost[:, 0].to(images.dtype)}


def count_squares(height: int, width: int) -> int:
    """Return how many squares `occlude` covers one after the other, each of which takes an answer."""
    side, stride = _square_of(height, width)
    return math.prod(1 + -(-(length - side) // stride) for length in (height, width))


def _square_of(height: int, width: int) -> tuple[int, int]:
    """Return the side of an occluded square, and the step from one to the next."""
    side = max(2, min(height, width) // PARTS)
    return side, max(1, side // 2)


def _in_evaluation(answer: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """Put a model into evaluation mode meanwhile; what only passes images on has no mode."""
    return in_evaluation(answer) if isinstance(answer, nn.Module) else nullcontext()


def _settle(answer: Callable[[Tensor], Tensor], images: Tensor, classes: Classes) -> Tensor:
    """Return the index of the class for each image (b), by a pass of its own where it is not known yet."""
    if isinstance(classes, Tensor):
        return classes
    with torch.no_grad():
        return settle_classes(classes, answer(images))


def _evidence_for(answer: Callable[[Tensor], Tensor], chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what says how much speaks for each class in changed images; it refuses a class that there is not."""

    def answer_with_evidence(changed: Tensor) -> Tensor:
        logits = answer(changed)
        settle_classes(chosen, logits)
        return to_evidence(logits)

    return answer_with_evidence


def require_captum() -> None:
    """Refuse to go on without captum.

    Raises:
        MissingExtra: With what to install.
    """
    if find_spec("captum") is None:
        raise MissingExtra(
            "integrated-gradients and occlusion need captum, which is not installed; run: pip "
            "install 'vitrail[explain]'"
        )
