"""Fast shear and translation for timm's augmentation policies, equal to Pillow's to one level; and posterize.

A shear or translation moves a row, or a column, as a whole, so that its pixels share one place
between two of the old ones: a filter of 2 or 4 taps along the row, where Pillow's affine transform
weighs 4 or 16 pixels anew for each.

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


def speed_up_policy(policy: Any) -> None:
    """Replace operations of one of timm's policies, as its `create_transform` gives it, by the functions of QUICK."""
    for transform in policy.transforms:
        # RandAugment has a list of operations, AutoAugment a list of sequences of them
        operations = getattr(transform, "ops", None)
        if not operations:
            operations = [step for steps in getattr(transform, "policy", []) for step in steps]
        for operation in operations:
            operation.aug_fn = QUICK.get(operation.aug_fn.__name__, operation.aug_fn)


def shift_rows(
    picture: NDArray[np.uint8],
    shifts: NDArray[np.float64],
    fill: tuple[int, int, int],
    resample: Image.Resampling,
) -> NDArray[np.uint8]:
    """Shift each row of a picture to the left by its own number of pixels, to one level as Pillow's `transform` does.

    Args:
        picture: (h, w, 3).
        shifts: (h,) pixels; below zero, a row moves to the right.
        fill: Colour of the pixels that come from outside the picture.
        resample: BICUBIC or BILINEAR.
    """
    height, width = picture.shape[:2]
    is_cubic = resample == Image.Resampling.BICUBIC
    taps = 4 if is_cubic else 2
    whole = np.floor(shifts)
    # beyond these, a row is all from outside
    first = np.clip(whole, -width - 1, width).astype(np.int64) - is_cubic
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
    if is_cubic:
        # Pillow's cubic, before + part * (... ), in its order: even colours stay what they are
        before, near, far, after = columns
        rise = near - before
        cubic = (rise + after).sub_(far)
        moved = (part * cubic).sub_(cubic).sub_(rise).mul_(part).add_(far).sub_(before)
    else:
        near, far = columns
        moved = far - near
    moved.mul_(part).add_(near).clamp_(0, 255)
    # astype cuts off, as Pillow does; torch takes five times as long
    result = moved.numpy().astype(np.uint8)
    centres = np.arange(width) + 0.5 + shifts[:, None]
    # pixels of three bytes: assigning colours through a mask takes ten times as long
    pixels = result.view("V3")
    pixels[(centres < 0) | (centres >= width)] = np.array(fill, dtype=np.uint8).view("V3")
    return result.reshape(height, width, 3)


def _shear_shifts(image: Image.Image, factor: float) -> NDArray[np.float64]:
    return factor * (np.arange(image.height, dtype=np.float64) + 0.5)


def _share_shifts(image: Image.Image, share: float) -> NDArray[np.float64]:
    return np.full(image.height, share * image.width)


def _pixel_shifts(image: Image.Image, pixels: float) -> NDArray[np.float64]:
    return np.full(image.height, float(pixels))


@dataclass(frozen=True)
class _Move:
    """An operation of a policy that shifts each row, or each column, by its own number of pixels."""

    shifts: Callable[[Image.Image, float], NDArray[np.float64]]
    """Returns the shift of each row, from the image and the strength."""
    columns: bool
    """Whether columns are shifted instead of rows."""

    def __call__(
        self, image: Image.Image, value: float, *, fillcolor: tuple[int, int, int], resample: Any
    ) -> Image.Image:
        if isinstance(resample, list | tuple):
            resample = random.choice(resample)  # as timm draws it
        if self.columns:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        shifts = self.shifts(image, value)
        moved = Image.fromarray(shift_rows(np.asarray(image), shifts, fillcolor, resample))
        if self.columns:
            moved = moved.transpose(Image.Transpose.TRANSPOSE)
        return moved


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each level; 0 bits give black, which timm may draw and Pillow from 13 on refuses."""
    if bits >= 8:
        return image
    if bits <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


QUICK = {
    "shear_x": _Move(_shear_shifts, columns=False),
    "shear_y": _Move(_shear_shifts, columns=True),
    "translate_x_rel": _Move(_share_shifts, columns=False),
    "translate_y_rel": _Move(_share_shifts, columns=True),
    "translate_x_abs": _Move(_pixel_shifts, columns=False),
    "translate_y_abs": _Move(_pixel_shifts, columns=True),
    "posterize": _posterize,
}
"""Replacements of timm's functions, by their names."""
