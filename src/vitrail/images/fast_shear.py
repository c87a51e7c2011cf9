"""Shears, translations and posterizing of timm's policies, as Pillow draws them; the first two several times faster.

Each moves a row, or a column, as a whole, so that its pixels share one place between two of the old ones: a filter of 2
or 4 taps along the row, where Pillow's affine transform weighs 4 or 16 pixels anew for each.

Shapes
    h rows, w columns
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageOps


def quicken(policy: Any) -> None:
    """Let the operations of one of timm's policies, as its `create_transform` gives it, move by the functions below."""
    for part in policy.transforms:
        listed = getattr(part, "ops", None) or [step for steps in getattr(part, "policy", []) for step in steps]
        for operation in listed:
            operation.aug_fn = QUICK.get(operation.aug_fn.__name__, operation.aug_fn)


def move_rows(
    picture: NDArray[np.uint8], shifts: NDArray[np.float64], fill: tuple[int, int, int], resample: Image.Resampling
) -> NDArray[np.uint8]:
    """Return a picture whose rows show what lies to their right, within one level of what Pillow's `transform` gives.

    Args:
        picture: (h, w, 3).
        shifts: (h,) pixels, below zero to the left.
        fill: Colour of what comes from outside.
        resample: BICUBIC or BILINEAR.
    """
    height, width = picture.shape[:2]
    taps = 4 if resample == Image.Resampling.BICUBIC else 2
    whole = np.floor(shifts)
    # beyond these, a row is all from outside
    first = np.clip(whole, -width - 1, width).astype(np.int64) - (taps == 4)
    margin = int(max(-first.min(), first.max() + taps, taps))
    wide = np.empty((height, width + 2 * margin, 3), dtype=np.uint8)
    wide[:, margin : margin + width] = picture
    # no pixel whose centre is inside reads further; what is further outside becomes the fill
    wide[:, margin - taps : margin] = picture[:, :1]
    wide[:, margin + width : margin + width + taps] = picture[:, -1:]
    windows = sliding_window_view(wide.reshape(height, -1), 3 * (width + taps - 1), axis=1)
    read = torch.from_numpy(windows[np.arange(height), 3 * (margin + first)]).float()
    columns = [read[:, 3 * tap : 3 * (tap + width)] for tap in range(taps)]
    part = torch.from_numpy((shifts - whole).astype(np.float32))[:, None]
    if taps == 4:
        # Pillow's cubic, before + part * (... ), in its order: even colours stay what they are
        before, near, far, after = columns
        rise = near - before
        cubic = (rise + after).sub_(far)
        moved = (part * cubic).sub_(cubic).sub_(rise).mul_(part).add_(far).sub_(before)
    else:
        near, far = columns
        moved = far - near
    moved.mul_(part).add_(near).clamp_(0, 255)
    result = moved.numpy().astype(np.uint8)  # cuts off, as Pillow does; torch takes five times as long
    centres = np.arange(width) + 0.5 + shifts[:, None]
    # pixels of three bytes: assigning colours through a mask takes ten times as long
    pixels = result.view("V3")
    pixels[(centres < 0) | (centres >= width)] = np.array(fill, dtype=np.uint8).view("V3")
    return result.reshape(height, width, 3)


def _sheared(image: Image.Image, factor: float) -> NDArray[np.float64]:
    return factor * (np.arange(image.height, dtype=np.float64) + 0.5)


def _by_share(image: Image.Image, share: float) -> NDArray[np.float64]:
    return np.full(image.height, share * image.width)


def _by_pixels(image: Image.Image, pixels: float) -> NDArray[np.float64]:
    return np.full(image.height, float(pixels))


@dataclass(frozen=True)
class _Move:
    shifts: Callable[[Image.Image, float], NDArray[np.float64]]
    columns: bool

    def __call__(
        self, image: Image.Image, value: float, *, fillcolor: tuple[int, int, int], resample: Any
    ) -> Image.Image:
        chosen = random.choice(resample) if isinstance(resample, list | tuple) else resample  # as timm draws it
        turned = image.transpose(Image.Transpose.TRANSPOSE) if self.columns else image
        moved = Image.fromarray(move_rows(np.asarray(turned), self.shifts(turned, value), fillcolor, chosen))
        return moved.transpose(Image.Transpose.TRANSPOSE) if self.columns else moved


def _posterized(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep some bits of each level. None leave black, as Pillow before 13 has it; later ones refuse what timm draws."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


QUICK = {
    "shear_x": _Move(_sheared, columns=False),
    "shear_y": _Move(_sheared, columns=True),
    "translate_x_rel": _Move(_by_share, columns=False),
    "translate_y_rel": _Move(_by_share, columns=True),
    "translate_x_abs": _Move(_by_pixels, columns=False),
    "translate_y_abs": _Move(_by_pixels, columns=True),
    "posterize": _posterized,
}
"""What takes the place of timm's functions, by their names."""
