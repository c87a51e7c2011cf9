"""Images of another size than a model was built for: padded to whole patches, and tables of positions resized.

Shapes
    b images, c channels, h and w pixels, s positions with those of extra tokens, n and m positions of two grids,
    d channels of a token
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from vitrail.kernels.linear import is_symbolic
from vitrail.models.family import Grid, TransformerConfig


def fit_images(
    images: Float[Tensor, "b c h w"], config: TransformerConfig, title: str
) -> Float[Tensor, "b c _ _"]:
    """Return images as the network computes them: with zeros to whole patches, right and bottom, if of another size.

    Args:
        images: Normalised images.
        config: Configuration of the model.
        title: What the model is called in messages.

    Raises:
        ValueError: They are of another size than the model was built for, and it takes no other.
    """
    size = size_of(images, config)
    if size == config.size:
        return images
    if not config.dynamic_image_size:
        raise ValueError(
            f"images are {size} but this {title} was built for {config.size}; build it with "
            "image_size=(height, width), or with dynamic_image_size=True for images of any size"
        )
    height, width = size
    return pad(images, (0, -width % config.multiple, 0, -height % config.multiple))


def size_of(images: Tensor, config: TransformerConfig) -> Grid:
    """Return height and width of images; those of the configuration in a trace by torch.fx, which has no numbers."""
    if is_symbolic(images):
        return config.size
    height, width = images.shape[-2:]
    # where they are tensors
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return int(height), int(width)
    return height, width


def resize_positions(
    table: Float[Tensor, "1 s d"], before: Grid, after: Grid
) -> Float[Tensor, "1 _ d"]:
    """Return a table of positions for another grid, bicubic; what it has for extra tokens stands first and is kept."""
    if before == after:
        return table
    rows, columns = before
    extra = table.shape[1] - rows * columns
    cells = table[:, extra:].float().transpose(1, 2).reshape(1, -1, rows, columns)
    resized = interpolate(cells, after, mode="bicubic", antialias=True)
    resized = resized.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :extra], resized], dim=1)


def resize_pairs(
    table: Float[Tensor, "1 heads n m"], before: tuple[Grid, Grid], after: tuple[Grid, Grid]
) -> Float[Tensor, "1 heads _ _"]:
    """Return a table of pairs of positions, bicubic over the grid of the second ones and then of the first."""
    if before == after:
        return table
    (rows, columns), cells = before
    count = table.shape[1]
    x = table.float().reshape(count, rows * columns, *cells)
    x = interpolate(x, after[1], mode="bicubic", antialias=True).flatten(2)
    x = x.transpose(1, 2).reshape(count, -1, rows, columns)
    x = interpolate(x, after[0], mode="bicubic", antialias=True).flatten(2)
    return x.transpose(1, 2)[None].contiguous().to(table.dtype)
