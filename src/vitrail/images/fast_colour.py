"""Fast colour operations for timm's augmentation policies, on arrays, equal to Pillow's to the last bit.

Pillow looks each level up in a table, or blends two images. Here an operation is a call of compiled
C++ where there is some, and else arithmetic on all levels at once, in Pillow's own order of float32.

Shapes
    h rows, w columns
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.images.fast_shear import Picture
from vitrail.kernels.pictures import find_compiled

LUMA = (19595.0, 38470.0, 7471.0)
"""Weights of red, green and blue in Pillow's mode L, as 16-bit fractions."""


def invert(picture: Picture, **_: Any) -> Picture:
    """Turn each level x into 255 - x."""
    return ~picture


def posterize(picture: Picture, bits: int, **_: Any) -> Picture:
    """Keep the highest bits of each level; 0 bits give black, which timm may draw and Pillow from 13 on refuses."""
    if bits >= 8:
        return picture
    return picture & np.uint8(256 - 2 ** (8 - max(bits, 0)))


def solarize(picture: Picture, thresh: int, **_: Any) -> Picture:
    """Invert the levels from a threshold on."""
    above = (picture >= thresh).view(np.uint8)
    return picture ^ -above


def solarize_add(picture: Picture, add: int, thresh: int = 128, **_: Any) -> Picture:
    """Raise the levels below a threshold."""
    below = (picture < thresh).view(np.uint8)
    return picture + np.minimum(~picture, np.uint8(add)) * below


def auto_contrast(picture: Picture, **_: Any) -> Picture:
    """Stretch the levels of each channel to the whole range."""
    # reduced over rows first, all channels side by side: three times as fast as over pixels
    columns = picture.reshape(len(picture), -1)
    lowest = columns.min(0).reshape(-1, 3).min(0).tolist()
    highest = columns.max(0).reshape(-1, 3).max(0).tolist()
    levels = np.arange(256, dtype=np.float64)
    tables = []
    for low, high in zip(lowest, highest, strict=True):
        stretched = levels
        if high > low:
            scale = 255.0 / (high - low)
            stretched = levels * scale + -low * scale
        tables.append(np.clip(stretched, 0, 255).astype(np.uint8))
    return _look_up(picture, np.stack(tables))


def equalize(picture: Picture, **_: Any) -> Picture:
    """Spread the levels of each channel so that all are about equally frequent."""
    tables = []
    for count in _count_levels(picture):
        table = np.arange(256)
        used = np.flatnonzero(count)
        step = int(count.sum() - count[used[-1]]) // 255
        if len(used) > 1 and step > 0:
            before = np.cumsum(count) - count
            table = (step // 2 + before) // step
        tables.append(np.minimum(table, 255).astype(np.uint8))
    return _look_up(picture, np.stack(tables))


def _count_levels(picture: Picture) -> NDArray[np.int64]:
    """Count how often each level is there, (3, 256)."""
    compiled = find_compiled()
    if compiled is not None:
        return compiled.count_levels(picture)
    return torch.bincount(_find_places(picture), minlength=768).numpy().reshape(3, 256)


def _find_places(picture: Picture) -> Tensor:
    """Return where the levels stand in tables of 256 for red, green and blue, one after the other."""
    starts = torch.arange(0, 768, 256, dtype=torch.int32).repeat(picture.shape[1])
    return torch.from_numpy(picture).view(len(picture), -1).int().add_(starts).view(-1)


def _look_up(picture: Picture, tables: NDArray[np.uint8]) -> Picture:
    """Replace levels by those of a table for each channel, (3, 256)."""
    compiled = find_compiled()
    if compiled is not None:
        return compiled.look_up(picture, tables)
    found = torch.from_numpy(tables).view(-1).index_select(0, _find_places(picture))
    return found.view(picture.shape).numpy()


def brightness(picture: Picture, factor: float, **_: Any) -> Picture:
    """Multiply all levels by a factor."""
    compiled = find_compiled()
    if compiled is not None:
        return compiled.blend(picture, 0, factor)
    return _to_levels(torch.from_numpy(picture).float().mul_(factor))


def contrast(picture: Picture, factor: float, **_: Any) -> Picture:
    """Move all levels away from the picture's mean gray, or towards it."""
    compiled = find_compiled()
    if compiled is not None:
        mean = int(compiled.sum_grays(picture) / (picture.size // 3) + 0.5)
        return compiled.blend(picture, mean, factor)
    pixels = torch.from_numpy(picture).float()
    grays = _to_gray(pixels)
    mean = int(grays.sum(dtype=torch.float64).item() / grays.numel() + 0.5)
    return _to_levels(pixels.sub_(mean).mul_(factor).add_(mean))


def color(picture: Picture, factor: float, **_: Any) -> Picture:
    """Move each pixel away from its own gray, or towards it."""
    compiled = find_compiled()
    if compiled is not None:
        return compiled.saturate(picture, factor)
    pixels = torch.from_numpy(picture).float()
    grays = torch.from_numpy(np.repeat(_to_gray(pixels).numpy(), 3)).view(pixels.shape)
    return _to_levels(pixels.sub_(grays).mul_(factor).add_(grays))


def desaturate(picture: Picture, factor: float, **_: Any) -> Picture:
    """Move each pixel towards its own gray."""
    return color(picture, min(1.0, max(0.0, 1.0 - factor)))


def sharpness(picture: Picture, factor: float, **_: Any) -> Picture:
    """Move each pixel away from the mean of its neighbourhood, or towards it; the outermost stay what they are."""
    compiled = find_compiled()
    if compiled is not None:
        return compiled.sharpen(picture, factor)
    height, width = picture.shape[:2]
    if min(height, width) < 3:
        return picture.copy()
    rows = picture.reshape(height, -1).astype(np.int16)
    sums = rows[:-2] + rows[1:-1] + rows[2:]
    # neighbours of a channel are three bytes apart
    around = torch.from_numpy(sums[:, :-6] + sums[:, 3:-3] + sums[:, 6:] + 4 * rows[1:-1, 3:-3])
    # Pillow rounds sums of 13ths; half a unit more, no rounding of float32 can matter
    blurred = around.float().add_(6.5).mul_(1 / 13).floor_()
    inner = torch.from_numpy(rows[1:-1, 3:-3]).float()
    sharp = picture.copy()
    sharp.reshape(height, -1)[1:-1, 3:-3] = _to_levels(
        inner.sub_(blurred).mul_(factor).add_(blurred)
    )
    return sharp


def _to_gray(pixels: Tensor) -> Tensor:
    """Return Pillow's gray level of each pixel of (h, w, 3), in a row."""
    # every number on the way is whole and below 2**24, so float32 is exact
    weighted = pixels.view(-1, 3) @ torch.tensor(LUMA)
    return weighted.add_(0x8000).mul_(2.0**-16).floor_()


def _to_levels(values: Tensor) -> NDArray[np.uint8]:
    """Cut values off to whole levels, as Pillow does."""
    # astype takes a quarter of the time that torch takes
    return values.clamp_(0, 255).numpy().astype(np.uint8)
