"""What a model answered to each image, gathered to the first process in the order of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vitrail.distributed.processes import gather_to_first

CHOICES = 5


@dataclass(frozen=True)
class Gathered:
    """Each readable image once, in the order of the source."""

    indices: NDArray[np.int64]
    """(n,) in the source."""
    choices: NDArray[np.int64]
    """(n, up to CHOICES) classes, the likeliest first; none where an image may have several."""
    scores: NDArray[np.float32]
    """(n, k) logarithms of probabilities, which rank answers that differ less than probabilities near 1 can; logits
    where an image may have several classes."""


class Answers:
    """Keep the answers of this process, batch by batch, on its device: 4 bytes an image and class.

    The place for them is taken at once, as pieces that come between the work of the model would fragment the memory.

    Args:
        num_classes: Of the model.
        images: At most, of this process.
        device: Of the logits.
        several: Whether an image may have several classes.
    """

    def __init__(self, num_classes: int, images: int, device: torch.device, *, several: bool = False) -> None:
        device = torch.device("cpu") if device.type == "mps" else device  # no float64
        self._several = several
        self._filled = 0
        self._indices = torch.empty(images, dtype=torch.int64, device=device)
        choices = 0 if several else min(CHOICES, num_classes)
        self._choices = torch.empty(images, choices, dtype=torch.int64, device=device)
        self._scores = torch.empty(images, num_classes, device=device)

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Keep one batch: (b,) indices of its images in the source, and (b, k) logits."""
        logits = logits.float()
        place = slice(self._filled, self._filled + len(indices))
        self._filled = place.stop
        self._indices[place] = indices.to(self._indices.device, non_blocking=True)
        self._choices[place] = logits.topk(self._choices.shape[1]).indices.to(self._choices.device)
        logits = logits.to(self._indices.device)
        self._scores[place] = logits if self._several else logits.double().log_softmax(1).float()

    def gather(self, accelerator: Accelerator) -> Gathered | None:
        """Return the answers of all processes in the first one, None in the others."""
        kept = (self._indices, self._choices, self._scores)
        mine = tuple(values[: self._filled].cpu().numpy() for values in kept)
        everyone = gather_to_first(accelerator, mine)
        if everyone is None:
            return None
        if len(everyone) == 1:  # in order already, and no copy of what may be large
            return Gathered(*mine)
        order = np.argsort(np.concatenate([indices for indices, _, _ in everyone]))
        return Gathered(*(np.concatenate(parts)[order] for parts in zip(*everyone, strict=True)))
