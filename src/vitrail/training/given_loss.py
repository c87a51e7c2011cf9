"""A loss that a user gives in Python: named in the settings, and tried before the first update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitrail.config.commands import TrainConfig
from vitrail.errors import ConfigError, shorten

GivenLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits and targets (b, k), and returns the loss of each image, (b,)."""
HOW = "vitrail.train(..., loss=FUNCTION)"


def name_loss(loss: Callable[..., Any]) -> str:
    """Return the name that a run records: of a function, of a partial one with what it is given, or of a module."""
    if isinstance(loss, partial):
        given = [repr(value) for value in loss.args]
        given += [f"{key}={value!r}" for key, value in loss.keywords.items()]
        return f"{name_loss(loss.func)}({', '.join(given)})"
    if isinstance(loss, torch.nn.Module):
        return repr(loss)  # with the options that it shows
    return getattr(loss, "__name__", type(loss).__name__)


def check_loss(
    loss: GivenLoss | None, config: TrainConfig, num_classes: int, device: torch.device
) -> None:
    """Refuse settings without the loss that they name, and a loss that is none.

    Args:
        loss: What the user gave; None is the loss of the labels.
        config: All settings.
        num_classes: Classes of the model.
        device: Where the loss is computed.

    Raises:
        ConfigError: The settings name a loss that is not given, or two images do not get a loss
            each that depends on the logits.
    """
    name = config.train.loss
    if loss is None:
        if name is None:
            return
        raise ConfigError(
            f"train.loss={name}: is a function of Python, which no file holds; give it as {HOW}"
        )
    logits = torch.zeros(2, num_classes, device=device, requires_grad=True)
    targets = torch.eye(num_classes, device=device)[[0, -1]]
    try:
        losses = loss(logits, targets)
    except Exception as error:  # which is the user's own code
        raise ConfigError(
            f"train.loss={name}: cannot be computed of logits and targets of 2 images and {num_classes} "
            f"classes ({type(error).__name__}: {shorten(str(error), 120)}); it must be a function that "
            "takes both, each (images, classes)"
        ) from error
    if not isinstance(losses, Tensor):
        problem = f"{shorten(losses)}, which is no tensor"
    elif losses.shape != (2,):
        problem = f"a tensor of shape {tuple(losses.shape)}"
        problem += ", such as a mean; reduction='none' keeps the images apart" * (losses.ndim == 0)
    elif not losses.requires_grad:
        problem = "a tensor that does not depend on the logits for autograd"
    else:
        return
    raise ConfigError(
        f"train.loss={name}: gave {problem}, for logits and targets of 2 images and {num_classes} "
        "classes; it must give one number an image, (2,)"
    )
