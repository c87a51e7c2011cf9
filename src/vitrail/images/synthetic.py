"""Synthetic images with natural (1/f) statistics, used where no sample images are given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZES = ((480, 640), (375, 500), (640, 427), (333, 500))
"""Heights and widths of the images, which take them in turn."""
SLOPE = 1.2
"""Amplitudes of natural images fall about so with the frequency (Torralba and Oliva 2003)."""


def draw_photo(number: int, channels: int = 3) -> NDArray[np.uint8]:
    """Draw image `number` as (h, w, channels), always equal: clouds of all sizes and some edges."""
    generator = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = 1
    waves = np.fft.rfft2(generator.standard_normal((channels, height, width))) / frequencies**SLOPE
    waves[:, 0, 0] = 0
    clouds = np.fft.irfft2(waves, (height, width))
    clouds = clouds / clouds.std() + 1.5 * clouds[:1] / clouds[:1].std()
    for _ in range(6):
        top, left = generator.integers(0, (height, width))
        bottom, right = generator.integers((top, left), (height, width)) + 1
        clouds[:, top:bottom, left:right] += generator.normal(0, 1.5, (channels, 1, 1))
    return np.ascontiguousarray(
        np.clip(128 + 40 * clouds, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    )
