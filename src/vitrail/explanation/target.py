"""Which class of each image a map is of: its index, or a choice from the logits of the pass that the map is made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Classes = Tensor | Callable[[Tensor], Tensor]
"""Index of the class for each image (b), or a function that returns it for their logits (b, k). The
function spares a pass before the one that is explained."""


def settle_classes(classes: Classes, logits: Tensor) -> Tensor:
    """Return the index of the class for each image (b), where the logits (b, k) are known."""
    if isinstance(classes, Tensor):
        return classes
    return classes(logits.detach())
