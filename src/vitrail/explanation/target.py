"""Which class of each image a map is of: its index, or a choice from the logits of the pass; and what speaks for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitrail.errors import ConfigError

Classes = Tensor | Callable[[Tensor], Tensor]
"""Index of the class for each image (b), or a function that returns it for their logits (b, k). The
function spares a pass before the one that is explained."""


def settle_classes(classes: Classes, logits: Tensor) -> Tensor:
    """Return the index of the class for each image (b), where the logits (b, k) are known.

    Raises:
        ConfigError: There is no such class.
    """
    if not isinstance(classes, Tensor):
        return classes(logits.detach())
    largest = logits.shape[1] - 1
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) <= largest:
        raise ConfigError(
            f"classes are {classes.tolist()}; the model has the classes 0 to {largest}"
        )
    return classes


def to_evidence(logits: Tensor) -> Tensor:
    """Return what speaks for each class (b, k): its logit.

    A head of one output z is read as one of two classes with the logits 0 and z; as the first of
    them depends on nothing, what speaks for it is -z.
    """
    if logits.shape[1] != 2 or logits[:, 0].any():
        return logits
    return torch.cat([-logits[:, 1:], logits[:, 1:]], dim=1)
