"""Relevance carried from tokens to what they were made of: cells of a map, windows, overlapping neighbourhoods.

Each function keeps the sum of the relevance, but for what goes to padding.

Shapes
    b images, n tokens, h and w height and width of a map, p places of a neighbourhood
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, fold, pad, unfold

from vitrail.explanation.attention import Windows


def to_grid(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay relevance (b, n) out as a map (b, h, w)."""
    return relevance.reshape(-1, *size)


def spread_cells(relevance: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Divide the relevance (b, n) of square cells evenly among their tokens (b, h * w); left-over tokens get none.

    Args:
        relevance: Relevance of the cells, row by row.
        size: Height and width of the map that was cut into cells.
        side: Tokens along a side of a cell.
    """
    rows, columns = size[0] // side, size[1] // side
    grid = relevance.reshape(-1, rows, columns) / side**2
    grid = grid.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    rest = (0, size[1] - columns * side, 0, size[0] - rows * side)
    return pad(grid, rest).flatten(1)


def spread_merged(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Divide the relevance (b, n) of cells of two by two tokens evenly among these (b, h * w).

    On an odd grid the last cells have fewer tokens.

    Args:
        relevance: Relevance of the cells, row by row.
        size: Height and width of the map whose tokens were merged.
    """
    height, width = size
    ones = relevance.new_ones(1, 1, height, width)
    counts = avg_pool2d(ones, 2, ceil_mode=True, divisor_override=1)[0]  # (1, rows, columns)
    grid = relevance.reshape(-1, *counts.shape[1:]) / counts
    grid = grid.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return grid[:, :height, :width].flatten(1)


def spread_split(relevance: Tensor, size: tuple[int, int], side: int, stride: int) -> Tensor:
    """Divide the relevance (b, n) of a soft split's tokens among the places of their neighbourhoods (b, h * w).

    A place that several neighbourhoods share counts for less in each, so that equal tokens make an
    even map, without a pattern where neighbourhoods overlap.

    Args:
        relevance: Relevance of the tokens, row by row.
        size: Height and width of the map that was split.
        side: Places along a side of a neighbourhood.
        stride: Places from one neighbourhood to the next.
    """
    layout = {"kernel_size": side, "stride": stride, "padding": (side - stride + 1) // 2}
    cut = partial(unfold, **layout)
    join = partial(fold, output_size=size, **layout)
    # of each place, how many neighbourhoods have it
    counts = join(cut(relevance.new_ones(1, 1, *size)))
    shares = cut(1 / counts)  # (1, p, n), 0 in the padding
    shares = shares / shares.sum(dim=1, keepdim=True)
    return join(shares * relevance[:, None]).flatten(1)


def cut_windows(relevance: Tensor, windows: Windows) -> Tensor:
    """Cut relevance (b, h * w) into windows (b * windows, side * side); padding has none."""
    side = windows.side
    grid = relevance.reshape(-1, windows.height, windows.width)
    rest = (
        0,
        windows.columns * side - windows.width,
        0,
        windows.rows * side - windows.height,
    )
    grid = pad(grid, rest).reshape(-1, windows.rows, side, windows.columns, side)
    return grid.transpose(2, 3).reshape(-1, side * side)


def join_windows(relevance: Tensor, windows: Windows) -> Tensor:
    """Join windows (b * windows, side * side) to a map (b, h * w), and leave out what lies in the padding."""
    side = windows.side
    grid = relevance.reshape(-1, windows.rows, windows.columns, side, side).transpose(2, 3)
    grid = grid.reshape(-1, windows.rows * side, windows.columns * side)
    return grid[:, : windows.height, : windows.width].flatten(1)


def share_cells(relevance: Tensor, weights: Tensor, side: int) -> Tensor:
    """Divide what each square cell of a map (b, h, w) has in all among its places by their weights.

    Left-over places beyond the last whole cell keep what they have.

    Args:
        relevance: The map.
        weights: Weights of the places (b, h, w), never below 0.
        side: Places along a side of a cell.
    """
    rows, columns = relevance.shape[1] // side, relevance.shape[2] // side
    whole = (slice(None), slice(rows * side), slice(columns * side))

    def cut(grid: Tensor) -> Tensor:
        cells = grid[whole].unflatten(2, (columns, side)).unflatten(1, (rows, side))
        return cells.transpose(2, 3).flatten(3)  # (b, rows, columns, p)

    divided = divide(cut(relevance).sum(dim=3), cut(weights))
    shared = relevance.clone()
    shared[whole] = divided.unflatten(3, (side, side)).transpose(2, 3).flatten(3).flatten(1, 2)
    return shared


def divide(relevance: Tensor, weights: Tensor) -> Tensor:
    """Divide each relevance (...) among its parts (..., p) by their weights, evenly where all weights are 0."""
    sums = weights.sum(dim=-1, keepdim=True)
    even = torch.full_like(weights, 1 / weights.shape[-1])
    shares = torch.where(sums > 0, weights / sums.clamp(min=torch.finfo(sums.dtype).tiny), even)
    return relevance[..., None] * shares
