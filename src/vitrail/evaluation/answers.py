"""The answers of a model to each image, gathered to the first process in the order of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vitrail.distributed.processes import gather_to_first

CHOICES = 5
"""Likeliest classes that are kept of each image with one class."""


@dataclass(frozen=True)
class Gathered:
    """The answers to all readable images, each once, in the order of the source."""

    indices: NDArray[np.int64]
    """(n,) indices of the images in the source."""
    choices: NDArray[np.int64]
    """(n, up to CHOICES) classes, the likeliest first; (n, 0) in multi-label evaluations."""
    scores: NDArray[np.float32]
    """(n, k) logarithms of probabilities, which rank answers that differ less than probabilities
    near 1 can; in multi-label evaluations logits."""


class Answers:
    """Keep the answers of this process, batch by batch, on its device: 4 bytes an image and class.

    The memory is taken at once: pieces that come between the work of the model would fragment it.

    Args:
        num_classes: Number of the model's classes.
        images: The most images that this process may answer.
        device: Device of the logits.
        multi_label: Keep logits instead of logarithms of probabilities, and no choices.
    """

    def __init__(
        self, num_classes: int, images: int, device: torch.device, *, multi_label: bool = False
    ) -> None:
        # scores are computed in float64, which mps does not have
        if device.type == "mps":
            device = torch.device("cpu")
        choices = 0 if multi_label else min(CHOICES, num_classes)
        self._multi_label = multi_label
        self._filled = 0
        self._indices = torch.empty(images, dtype=torch.int64, device=device)
        self._choices = torch.empty(images, choices, dtype=torch.int64, device=device)
        self._scores = torch.empty(images, num_classes, device=device)

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Keep one batch: (b,) indices of its images in the source, and (b, k) logits."""
        logits = logits.float()
        place = slice(self._filled, self._filled + len(indices))
        self._filled = place.stop
        self._indices[place] = indices.to(self._indices.device, non_blocking=True)
        self._choices[place] = logits.topk(self._choices.shape[1]).indices.to(self._choices.device)
        scores = logits.to(self._indices.device)
        if not self._multi_label:
            scores = scores.double().log_softmax(1).float()
        self._scores[place] = scores

    def gather(self, accelerator: Accelerator) -> Gathered | None:
        """Return the answers of all processes in the first one, None in the others."""
        kept = (self._indices, self._choices, self._scores)
        mine = tuple(values[: self._filled].cpu().numpy() for values in kept)
        everyone = gather_to_first(accelerator, mine)
        if everyone is None:
            return None
        # of one process they are in order already, and may be too large to copy
        if len(everyone) == 1:
            return Gathered(*mine)
        order = np.argsort(np.concatenate([indices for indices, _, _ in everyone]))
        columns = zip(*everyone, strict=True)
        return Gathered(*(np.concatenate(parts)[order] for parts in columns))
