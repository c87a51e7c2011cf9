"""Fast shear and translation for timm's augmentation policies, on arrays, equal to Pillow's to one level.

A shear or translation moves a row, or a column, as a whole, so that its pixels share one place
between two of the old ones: a filter of 2 or 4 taps along the row, where Pillow's affine transform
weighs 4 or 16 pixels anew for each.

Shapes
    h rows, w columns
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail.kernels.pictures import find_compiled

Kind = TypeVar("Kind", bound=np.generic)
Picture = NDArray[np.uint8]
"""Levels of 8 bits, (h, w, 3) unless it is said otherwise, whose pixels lie one after the other."""
ROUNDING = 2e-3
"""Share of a level added before levels are cut off as Pillow cuts them: the weights of a filter sum
up to 1 but for their rounding, and an even colour must stay what it is."""


def shift_rows(
    picture: Picture,
    shifts: NDArray[np.float64],
    fill: NDArray[np.uint8],
    resample: Image.Resampling,
) -> Picture:
    """Shift each row of a picture to the left by its own number of pixels, to one level as Pillow's `transform` does.

    Args:
        picture: (h, w, c), of any number of channels.
        shifts: (h,) pixels; below zero, a row moves to the right.
        fill: (c,) or (h, c), levels of the pixels that come from outside the picture.
        resample: BICUBIC or BILINEAR.
    """
    height, width, channels = picture.shape
    is_cubic = resample == Image.Resampling.BICUBIC
    taps = 4 if is_cubic else 2
    whole = np.floor(shifts)
    # beyond these, a row is all from outside
    first = np.clip(whole, -width - 1, width).astype(np.int64) - is_cubic
    margin = int(max(-first.min(), first.max() + taps, taps))
    wide = np.empty((height, width + 2 * margin, channels), dtype=np.uint8)
    wide[:, margin : margin + width] = picture
    # no pixel whose centre is inside reads further; what is further outside becomes the fill
    wide[:, margin - taps : margin] = picture[:, :1]
    wide[:, margin + width : margin + width + taps] = picture[:, -1:]
    rows, starts = wide.reshape(height, -1), channels * (margin + first)
    weights = _weigh_places(shifts - whole, is_cubic)
    compiled = find_compiled()
    if compiled is not None:
        starts += np.arange(height) * rows.shape[1]
        result = compiled.filter_rows(rows, starts, channels, weights, channels * width, ROUNDING)
    else:
        windows = sliding_window_view(rows, channels * (width + taps - 1), axis=1)
        read = torch.from_numpy(windows[np.arange(height), starts]).float()
        columns = [read.narrow(1, channels * tap, channels * width) for tap in range(taps)]
        result = _add_up(columns, weights)
    result = result.reshape(picture.shape)
    _fill_outside(result, shifts, fill)
    return result


def shift_all(
    picture: Picture,
    shift: float,
    axis: int,
    fill: tuple[int, int, int],
    resample: Image.Resampling,
) -> Picture:
    """Shift a whole picture up (axis 0) or to the left (axis 1), to one level as Pillow's `transform` does.

    Args:
        picture: (h, w, 3).
        shift: Number of pixels; below zero, down or to the right.
        axis: 0 to shift rows, 1 to shift columns.
        fill: Colour of the pixels that come from outside the picture.
        resample: BICUBIC or BILINEAR.
    """
    length = picture.shape[axis]
    is_cubic = resample == Image.Resampling.BICUBIC
    count = length + (3 if is_cubic else 1)
    whole = math.floor(shift)
    first = min(max(whole, -length - 1), length) - is_cubic
    # beyond its edges a picture goes on as they are, up to what becomes the fill
    before = min(max(-first, 0), count)
    inside = _cut(picture, axis, max(first, 0), max(first + count, 0))
    after = count - before - inside.shape[axis]
    parts = [_cut(picture, axis, 0, 1)] * before + [inside]
    parts += [_cut(picture, axis, length - 1, length)] * after
    wide, weights = np.concatenate(parts, axis), _weigh_places(np.array([shift - whole]), is_cubic)
    compiled = find_compiled()
    if compiled is not None:
        height, width, channels = picture.shape
        rows = wide.reshape(len(wide), -1)
        starts = np.arange(height) * rows.shape[1]
        step = rows.shape[1] if axis == 0 else channels
        weights = np.repeat(weights, height, axis=0)
        result = compiled.filter_rows(rows, starts, step, weights, channels * width, ROUNDING)
        result = result.reshape(picture.shape)
    else:
        read = torch.from_numpy(wide).float()
        taps = range(weights.shape[1])
        result = _add_up([read.narrow(axis, tap, length) for tap in taps], weights)
    begin, end = _find_inside(shift, length)
    pixels, colour = _view_as_pixels(result), _view_as_pixels(np.array(fill, dtype=np.uint8))
    _cut(pixels, axis, 0, int(begin))[:] = colour
    _cut(pixels, axis, int(end), length)[:] = colour
    return result


def _cut(picture: NDArray[Kind], axis: int, begin: int, end: int) -> NDArray[Kind]:
    """Return rows (axis 0) or columns (axis 1) of a picture, which share its memory."""
    return picture[begin:end] if axis == 0 else picture[:, begin:end]


def _weigh_places(parts: NDArray[np.float64], is_cubic: bool) -> NDArray[np.float32]:
    """Return the weights of the taps, (n, taps), for n places that lie parts of a pixel behind a pixel's own."""
    rest = 1 - parts
    if is_cubic:
        # the cubic convolution with a = -1, which is that of Pillow's transforms
        near, far = 1 - parts**2 * (2 - parts), 1 - rest**2 * (2 - rest)
        weights = [-parts * rest**2, near, far, -(parts**2) * rest]
    else:
        weights = [rest, parts]
    return np.stack(weights, axis=1).astype(np.float32)


def _add_up(columns: list[Tensor], weights: NDArray[np.float32]) -> Picture:
    """Add up the taps by their weights, and cut levels off as Pillow does."""
    factors = torch.from_numpy(weights).split(1, dim=1)
    total = columns[0] * factors[0]
    for column, factor in zip(columns[1:], factors[1:], strict=True):
        # rounded before it is added, as in the compiled form
        total += column * factor
    # astype cuts off, as Pillow does; torch takes four times as long
    return total.add_(ROUNDING).clamp_(0, 255).numpy().astype(np.uint8)


def _fill_outside(picture: Picture, shifts: NDArray[np.float64], fill: NDArray[np.uint8]) -> None:
    """Colour the pixels of each row whose centres come from outside the picture."""
    width = picture.shape[1]
    begins, ends = _find_inside(shifts[:, None], width)
    # columns between those that all rows have inside are left alone
    left, right = int(begins.max()), int(ends.min())
    columns = np.arange(width, dtype=np.int32)
    pixels, colour = _view_as_pixels(picture), _view_as_pixels(fill)[..., None]
    if left > 0:
        np.copyto(pixels[:, :left], colour, where=columns[:left] < begins)
    if right < width:
        np.copyto(pixels[:, right:], colour, where=columns[right:] >= ends)


def _find_inside(shifts: NDArray[np.float64] | float, length: int) -> tuple[Any, Any]:
    """Return the first place whose centre comes from inside a row, and the first behind it that does not."""
    begins = np.clip(np.ceil(-0.5 - shifts), 0, length).astype(np.int32)
    ends = np.clip(np.ceil(length - 0.5 - shifts), 0, length).astype(np.int32)
    return begins, ends


def _view_as_pixels(levels: NDArray[np.uint8]) -> NDArray[np.void]:
    """View the levels of a pixel as one value: moving them one by one takes several times as long."""
    return levels.view(f"V{levels.shape[-1]}")[..., 0]


@dataclass(frozen=True)
class Shear:
    """Shear of a policy: each row, or each column, moves in proportion to its place."""

    columns: bool
    """Whether columns move instead of rows."""

    def __call__(
        self, picture: Picture, factor: float, *, fillcolor: tuple[int, int, int], resample: Any
    ) -> Picture:
        """Shear the picture as timm's function of a Pillow image does."""
        resample, fill = choose_filter(resample), np.array(fillcolor, dtype=np.uint8)
        height, width = picture.shape[:2]
        if not self.columns:
            return shift_rows(picture, factor * (np.arange(height) + 0.5), fill, resample)
        # a column of each channel becomes a row: transposing levels is faster than transposing pixels
        rows = np.ascontiguousarray(picture.reshape(height, -1).T)[:, :, None]
        shifts = np.repeat(factor * (np.arange(width) + 0.5), 3)
        sheared = shift_rows(rows, shifts, np.tile(fill, width)[:, None], resample)
        return np.ascontiguousarray(sheared[:, :, 0].T).reshape(picture.shape)


@dataclass(frozen=True)
class Translate:
    """Translation of a policy, up or to the left."""

    axis: int
    """0 moves up, 1 to the left."""
    is_share: bool
    """Whether the strength is a share of the picture's side, instead of pixels."""

    def __call__(
        self, picture: Picture, amount: float, *, fillcolor: tuple[int, int, int], resample: Any
    ) -> Picture:
        """Move the picture as timm's function of a Pillow image does."""
        pixels = amount * picture.shape[self.axis] if self.is_share else amount
        return shift_all(picture, pixels, self.axis, fillcolor, choose_filter(resample))


def choose_filter(resample: Any) -> Image.Resampling:
    """Return the filter of an operation, drawn as timm draws it where there are several."""
    return random.choice(resample) if isinstance(resample, list | tuple) else resample
