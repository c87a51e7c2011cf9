"""RandAugment of a batch on its device: the operations that timm draws for each image, for many images at once.

The draws of an image follow from its key alone, and so do its pixels: whichever images it shares a
batch with, none is computed from another.

Shapes
    b images of a batch, n of which an operation is drawn for; h and w pixels

Differences from Pillow
    Inverting, posterizing, solarizing, brightness, contrast, colour, sharpness and equalizing give
    its pixels. Stretching the contrast is a level apart where Pillow's own rounding falls short of
    a whole level. Rotation, shear and translation compute in float32: a level apart in about one
    value of a hundred, and in rare pixels at the edge of what is filled they take the other side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from vitrail.images.fast_colour import LUMA
from vitrail.images.fast_policy import MOVES, Drawn
from vitrail.images.train_view import TrainView
from vitrail.kernels.pictures import find_rotation

Images = UInt8[Tensor, "n 3 h w"]
Strengths = Float[Tensor, "n 1 1 1"]
MARGIN = 2
"""Pixels around an image that the cubic filter reads."""
ROUNDING = 1e-2
"""Share of a level added before levels are cut off: the places of pixels are rounded to float32."""


@dataclass(frozen=True)
class DeviceAugment:
    """The policy of a training view, computed for whole batches on a device."""

    view: TrainView
    device: torch.device

    def __call__(
        self, images: UInt8[Tensor, "b 3 h w"], keys: Int64[Tensor, " b"]
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Augment views on the device, each by the draws of its own key."""
        images = images.to(self.device, non_blocking=True)
        drawn = self.view.draw_operations(keys.tolist())
        return apply_operations(images, drawn, self.view.fill)


def build_augment(view: TrainView, device: torch.device) -> DeviceAugment | None:
    """Return what computes a view's policy on the device; None where the loader does it, or there is none."""
    return DeviceAugment(view, device) if view.on_device else None


def apply_operations(
    images: UInt8[Tensor, "b 3 h w"],
    drawn: Sequence[Sequence[Drawn]],
    fill: tuple[int, int, int],
) -> UInt8[Tensor, "b 3 h w"]:
    """Apply to each image its own operations, one after the other.

    Args:
        images: The batch, which stays as it is.
        drawn: Operations of each image.
        fill: Colour of pixels that come from outside an image.
    """
    images = images.contiguous().clone()
    for turn in range(max(map(len, drawn), default=0)):
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, operations in enumerate(drawn):
            if turn < len(operations):
                operation = operations[turn]
                kind = "move" if operation.name in MOVES else operation.name
                groups[kind, operation.resample].append(number)
        for (kind, resample), numbers in groups.items():
            chosen = torch.tensor(numbers).to(images.device, non_blocking=True)
            operations = [drawn[number][turn] for number in numbers]
            picked = images[chosen]
            if kind == "move":
                changed = _move(picked, operations, fill, resample == Image.Resampling.BICUBIC)
            else:
                values = torch.tensor([operation.value for operation in operations])
                strengths = values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
                changed = COLOURS[kind](picked, strengths)
            images[chosen] = changed
    return images


def _move(
    images: Images, operations: Sequence[Drawn], fill: tuple[int, int, int], is_cubic: bool
) -> Images:
    """Rotate, shear or translate each image as Pillow's `transform` does, by its own operation."""
    device, (height, width) = images.device, images.shape[2:]
    matrices = [_find_matrix(operation, height, width) for operation in operations]
    a, b, c, d, e, f = torch.tensor(matrices).to(device, non_blocking=True).T[:, :, None, None]
    columns = torch.arange(width, device=device) + 0.5
    rows = torch.arange(height, device=device)[:, None] + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    is_inside: Bool[Tensor, "n h w"] = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5 + MARGIN, y - 0.5 + MARGIN
    pixels = pad(images.float(), (MARGIN,) * 4, mode="replicate")
    moved = _read_cubic(pixels, x, y) if is_cubic else _read_linear(pixels, x, y)
    levels = moved.add_(ROUNDING).clamp_(0, 255).to(torch.uint8)
    colour = torch.tensor(fill, dtype=torch.uint8).to(device, non_blocking=True)
    return torch.where(is_inside[:, None], levels, colour.view(3, 1, 1))


def _find_matrix(operation: Drawn, height: int, width: int) -> tuple[float, ...]:
    """Return where an operation takes the pixel (x, y) from: (a x + b y + c, d x + e y + f) as (a, b, c, d, e, f)."""
    name, value = operation.name, operation.value
    if name == "shear_x":
        return (1.0, value, 0.0, 0.0, 1.0, 0.0)
    if name == "shear_y":
        return (1.0, 0.0, 0.0, value, 1.0, 0.0)
    if name.startswith("translate_x"):
        return (1.0, 0.0, value * width if name.endswith("rel") else value, 0.0, 1.0, 0.0)
    if name.startswith("translate_y"):
        return (1.0, 0.0, 0.0, 0.0, 1.0, value * height if name.endswith("rel") else value)
    return find_rotation(value, height, width)


def _read_linear(
    pixels: Float[Tensor, "n 3 H W"], x: Float[Tensor, "n h w"], y: Float[Tensor, "n h w"]
) -> Float[Tensor, "n 3 h w"]:
    """Read pixels at places between them, linearly."""
    height, width = pixels.shape[2:]
    places = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=3)
    # what lies outside of the margin is filled, whatever is read there
    return grid_sample(pixels, places, mode="bilinear", align_corners=True)


def _read_cubic(
    pixels: Float[Tensor, "n 3 H W"], x: Float[Tensor, "n h w"], y: Float[Tensor, "n h w"]
) -> Float[Tensor, "n 3 h w"]:
    """Read pixels at places between them by Pillow's cubic filter, whose a is -1, where torch's is -0.75.

    Along one axis, at t behind a pixel, the filter is linear reading at t**2 (3 - 2 t), plus
    t (1 - t) times (1 - t) d - t e, where d and e are the differences between the neighbours of
    that pixel and of the next one. With alternating signs in an image of such differences, that is
    linear reading at t too.
    """
    device, (height, width) = pixels.device, pixels.shape[2:]
    odd_columns = 1 - 2 * (torch.arange(width, device=device) % 2)
    odd_rows = 1 - 2 * (torch.arange(height, device=device)[:, None] % 2)
    across = pad(pixels[:, :, :, 2:] - pixels[:, :, :, :-2], (1, 1, 0, 0)) * odd_columns
    down = pad(pixels[:, :, 2:] - pixels[:, :, :-2], (0, 0, 1, 1)) * odd_rows
    both = pad(across[:, :, 2:] - across[:, :, :-2], (0, 0, 1, 1)) * odd_rows
    column, row = x.floor(), y.floor()
    t, u = x - column, y - row
    eased_x, eased_y = column + t**2 * (3 - 2 * t), row + u**2 * (3 - 2 * u)
    bend_x = (t * (1 - t) * (1 - 2 * (column % 2)))[:, None]
    bend_y = (u * (1 - u) * (1 - 2 * (row % 2)))[:, None]
    level = _read_linear(pixels, eased_x, eased_y)
    level.addcmul_(bend_x, _read_linear(across, x, eased_y))
    level.addcmul_(bend_y, _read_linear(down, eased_x, y))
    return level.addcmul_(bend_x * bend_y, _read_linear(both, x, y))


def _invert(images: Images, _: Strengths) -> Images:
    return ~images


def _posterize(images: Images, bits: Strengths) -> Images:
    masks = 256 - 2 ** (8 - bits.clamp(0, 8))
    return images & masks.to(torch.uint8)


def _solarize(images: Images, thresholds: Strengths) -> Images:
    return torch.where(images < thresholds, images, ~images)


def _solarize_add(images: Images, additions: Strengths) -> Images:
    raised = (images + additions).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, raised, images)


def _brightness(images: Images, factors: Strengths) -> Images:
    return _to_levels(images * factors)


def _contrast(images: Images, factors: Strengths) -> Images:
    grays = _to_gray(images.float())
    # whole numbers, whose sum is exact where float32 would round
    sums = grays.to(torch.int64).sum((1, 2, 3), keepdim=True)
    count = grays[0].numel()
    means = torch.div(2 * sums + count, 2 * count, rounding_mode="floor")
    return _blend(means.float(), images, factors)


def _color(images: Images, factors: Strengths) -> Images:
    return _blend(_to_gray(images.float()), images, factors)


def _sharpness(images: Images, factors: Strengths) -> Images:
    if min(images.shape[2:]) < 3:
        return images
    pixels = images.float()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    around = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:] + 4 * inner
    # sums of 13ths, rounded
    blurred = around.add_(6.5).mul_(1 / 13).floor_()
    sharp = images.clone()
    sharp[:, :, 1:-1, 1:-1] = _blend(blurred, inner, factors)
    return sharp


def _auto_contrast(images: Images, _: Strengths) -> Images:
    levels = images.int()
    lowest, highest = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    span = highest - lowest
    stretched = torch.div(255 * (levels - lowest), span.clamp(min=1), rounding_mode="floor")
    return torch.where(span > 0, stretched, levels).to(torch.uint8)


def _equalize(images: Images, _: Strengths) -> Images:
    levels = images.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(levels), 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.int32))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    steps = torch.div(counts.sum(1, keepdim=True) - last, 255, rounding_mode="floor")
    before = counts.cumsum(1) - counts
    whole = steps.clamp(min=1)
    half = torch.div(whole, 2, rounding_mode="floor")
    tables = torch.div(half + before, whole, rounding_mode="floor").clamp(max=255)
    found = tables.gather(1, levels)
    return torch.where(steps > 0, found, levels).to(torch.uint8).view(images.shape)


def _to_gray(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return Pillow's gray levels; every number on the way is whole, and below 2**24."""
    red, green, blue = (
        part * luma for part, luma in zip(pixels.split(1, dim=1), LUMA, strict=True)
    )
    return (red + green + blue + 0x8000).mul_(2.0**-16).floor_()


def _blend(plain: Tensor, images: Tensor, factors: Strengths) -> Images:
    """Move images away from their plain form, or towards it."""
    return _to_levels(plain + (images - plain) * factors)


def _to_levels(values: Float[Tensor, "n 3 h w"]) -> Images:
    return values.clamp_(0, 255).to(torch.uint8)


COLOURS: dict[str, Callable[[Images, Strengths], Images]] = {
    "auto_contrast": _auto_contrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
}
"""Operations that change levels, by the names of timm's functions."""
