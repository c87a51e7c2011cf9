"""Grad-CAM at the levels that a model names (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

A channel of a level counts by the mean gradient of the class's logit for it, over the map. What
speaks against the class is kept, below 0, where the paper cuts it off. Where a head reads the class
token, nothing reads the other tokens of the last level: their gradient is zero, and the level
before is the last that has a map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import ConfigError, write_option
from vitrail.explanation.relevance import in_evaluation
from vitrail.explanation.target import Classes, settle_classes, to_evidence
from vitrail.models.family import VisionModel, to_map


def weigh_channels(
    model: VisionModel, images: Tensor, classes: Classes, level: int | None = None
) -> Mapping[str, Tensor]:
    """Return Grad-CAM of one level, by the name of its module.

    Args:
        model: A model of this package's own families.
        images: Normalised images (b, c, h, w).
        classes: The class for each image.
        level: Index in the model's `feature_levels`, a negative one from the end; None is the last
            level whose map anything reads.

    Raises:
        ConfigError: There is no such level, or nothing reads its map.
    """
    with torch.enable_grad(), in_evaluation(model):
        passed = list(model.levels(images.detach().requires_grad_()))
        logits = model.forward_head(model.norm(passed[-1][0]))
        chosen = settle_classes(classes, logits)
        score = to_evidence(logits).gather(1, chosen[:, None]).sum()
        tokens = [one for one, _ in passed]
        gradients = torch.autograd.grad(score, tokens, materialize_grads=True)
    read = []
    for index, gradient in enumerate(gradients):
        if gradient[:, model.num_class_tokens :].any():
            read.append(index)
    place = _choose(model, level, read)
    height, width = passed[place][1]
    of_map, slopes = (
        to_map(one[:, -height * width :].detach(), height, width)
        for one in (tokens[place], gradients[place])
    )  # (b, d, h, w)
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    return {model.feature_levels[place].module: (weights * of_map).sum(dim=1)}


def _choose(model: VisionModel, level: int | None, read: list[int]) -> int:
    """Return the index of the level that is asked for, of those that are read, or of the last of them."""
    names = [one.module for one in model.feature_levels]
    with_map = ", ".join(f"{index} ({names[index]})" for index in read)
    if not read:
        raise ConfigError(
            "grad-cam: nothing reads the map of any level of this model, as its one block is read "
            "by the class token; take another method"
        )
    if level is None:
        return read[-1]
    where = write_option("level", level)
    if not -len(names) <= level < len(names):
        raise ConfigError(f"{where}: this model has levels 0 to {len(names) - 1}")
    index = level % len(names)
    if index not in read:
        raise ConfigError(
            f"{where}: nothing reads the map of {names[index]}, so it would be zero everywhere; "
            f"levels with a map are {with_map}"
        )
    return index
