"""What a model answered to each image, gathered to the first process in the order of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vitrail.engine import gather_to_first

CHOICES = 5


@dataclass(frozen=True)
class Gathered:
    """Each readable image once, in the order of the source."""

    indices: NDArray[np.int64]
    """(n,) in the source."""
    choices: NDArray[np.int64]
    """(n, up to CHOICES) classes, the likeliest first."""
    log_probabilities: NDArray[np.float32]
    """(n, k); logarithms rank answers that differ less than probabilities near 1 can."""


class Answers:
    """Keep the answers of this process, batch by batch, on its device: 4 bytes an image and class."""

    def __init__(self, num_classes: int) -> None:
        self._parts = [
            (
                torch.empty(0, dtype=torch.int64),
                torch.empty(0, min(CHOICES, num_classes), dtype=torch.int64),
                torch.empty(0, num_classes),
            )
        ]

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Keep one batch: (b,) indices of its images in the source, and (b, k) logits."""
        logits = logits.float()
        choices = logits.topk(min(CHOICES, logits.shape[1])).indices
        if logits.device.type == "mps":  # no float64
            logits = logits.cpu()
        self._parts.append((indices, choices, logits.double().log_softmax(1).float()))

    def gather(self, accelerator: Accelerator) -> Gathered | None:
        """Return the answers of all processes in the first one, None in the others."""
        indices, choices, log_probabilities = (
            torch.cat([part.cpu() for part in parts]) for parts in zip(*self._parts, strict=True)
        )
        self._parts.clear()
        mine = indices.numpy(), choices.numpy(), log_probabilities.numpy()
        everyone = gather_to_first(accelerator, mine)
        if everyone is None:
            return None
        if len(everyone) == 1:  # in order already, and no copy of what may be large
            return Gathered(*mine)
        order = np.argsort(np.concatenate([indices for indices, _, _ in everyone]))
        return Gathered(*(np.concatenate(parts)[order] for parts in zip(*everyone, strict=True)))
