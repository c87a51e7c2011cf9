"""Check the normalisation of a network's inputs: warn of images nearly constant or far from mean 0 and std 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

ENOUGH = 64
"""Images of a training, in random order, after which the check gives its verdict."""
CONSTANT = 0.05
"""Standard deviation below which hardly anything is to be seen. Paper of which a hundredth is ink
has 0.1 even where it is divided by 1, photographs have about 1; a mean and std for pixels up to 255
leave 0.009 at most, as pixels from 0 to 1 deviate by no more than 0.5."""
FAR = 3.0
"""Mean, or standard deviation, beyond which the normalisation was meant for other pixels: with the
mean and std of ImageNet, CIFAR or 0.5, pixels lie within -2.5 and 2.8, so that no image of any kind
reaches it."""


class InputCheck:
    """Mean and standard deviation of each channel, over all pixels of the images that are added."""

    def __init__(self) -> None:
        self.images = 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    def add(self, images: Float[Tensor, "b c h w"]) -> None:
        """Count normalised images; nothing waits for the device."""
        if not len(images):
            return
        n = len(images)
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
        square = variance + mean**2
        if self._mean is None or self._square is None:
            self._mean = n * mean
            self._square = n * square
        else:
            self._mean = self._mean + n * mean
            self._square = self._square + n * square
        self.images += n

    def doubt(self, mean: Sequence[float], std: Sequence[float]) -> str | None:
        """Say what is odd about the images, given what they were normalised by; None where nothing is."""
        if self._mean is None or self._square is None:
            return None
        means = self._mean.cpu().double() / self.images
        deviations = (self._square.cpu().double() / self.images - means**2).clamp(min=0).sqrt()
        if (deviations < CONSTANT).all():
            what = "are nearly constant"
        elif (means.abs() > FAR).any() or (deviations > FAR).any():
            what = "are far from mean 0 and standard deviation 1"
        else:
            return None
        return (
            f"{self.images:,} images {what} once they are normalised: their mean is "
            f"{_few(means.tolist())}, their standard deviation {_few(deviations.tolist())}; "
            f"preprocess.mean is {_few(mean)} and preprocess.std {_few(std)}, for pixels from 0 to "
            "1; `vitrail check-data` measures those of your images"
        )


def _few(values: Sequence[float]) -> str:
    shown = [f"{value:.3g}" for value in values[:4]]
    if len(values) > 4:
        shown.append("...")
    return f"({', '.join(shown)})"
