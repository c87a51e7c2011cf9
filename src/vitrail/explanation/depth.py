"""What happens over the depth of a network: how far attention reaches, and how alike tokens become.

    Attention distance (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, figure 7): the distance in pixels
    between a query and its keys, averaged by the shares that the query gives them, by head and layer. The class token
    is left out, and so is the padding of windows.
    Similarity of tokens (Gong et al. 2021, https://arxiv.org/abs/2104.12753): the mean cosine of the tokens of an image
    with each other after each block. In TNT that of the words is within their sentence.

Shapes
    b images, w windows of an image or its sentences, h heads, n queries or tokens, m keys, d channels
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from vitrail.explanation.attention import Level, Recorded, record_attention
from vitrail.explanation.placing import cut_windows
from vitrail.explanation.relevance import in_evaluation
from vitrail.models.family import Grid, VisionModel
from vitrail.models.pyramid_tnt import SIDE, PyramidTNT
from vitrail.models.t2t_vit import T2TViT
from vitrail.models.tnt import TNT
from vitrail.models.twins import Twins

BLOCK = re.compile(r"blocks\.\d+(\.\d+)?|stages\.\d+\.blocks\.\d+")
SPLIT_STEPS = (4, 8)
"""Pixels from one token to the next in the two soft splits of T2T-ViT that attend."""


@dataclass(frozen=True)
class Reach:
    """How far the attention of one module reaches."""

    name: str
    """Name of the module."""
    level: Level
    layer: int
    """Index among the modules of its level."""
    pixels: tuple[float, ...]
    """Mean distance between query and key, by head."""
    even: float
    """The distance where each query gives equal shares to all its keys."""


@dataclass(frozen=True)
class Likeness:
    """How alike the tokens are after one block."""

    name: str
    """Name of the block."""
    level: Level
    layer: int
    """Index among the blocks."""
    cosine: float
    """Mean cosine of two tokens of an image, or of two words of a sentence."""


def measure_depth(model: VisionModel, images: Tensor) -> tuple[list[Reach], list[Likeness]]:
    """Return how far each attention of one of our models reaches, and how alike its tokens are after each block.

    Args:
        model: The model.
        images: Normalised images (b, c, h, w), over which all numbers are means.

    Raises:
        ConfigError: The model's attention is not known.
    """
    with (
        torch.no_grad(),
        in_evaluation(model),
        record_attention(model) as recorded,
        _record_blocks(model) as blocks,
    ):
        model(images)
    reaches = []
    for one in recorded:
        shares, queries, keys, is_real = _lay_out(model, one)
        pixels = measure_reach(shares, queries, keys, is_real)
        equal = torch.ones_like(shares[:, :1])
        even = measure_reach(equal, queries, keys, is_real).item()
        reaches.append(Reach(one.name, one.level, one.layer, tuple(pixels.tolist()), even))
    likenesses = []
    for layer, (name, outputs) in enumerate(blocks):
        for level, tokens in outputs.items():
            cosine = measure_likeness(tokens).mean().item()
            likenesses.append(Likeness(name, level, layer, cosine))
    return reaches, likenesses


def measure_reach(
    shares: Float[Tensor, "b h n m"],
    queries: Float[Tensor, "n 2"],
    keys: Float[Tensor, "m 2"],
    is_real: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, " h"]:
    """Return the mean distance between queries and keys, by the shares of the keys, for each head.

    Args:
        shares: What queries give to keys.
        queries: Place of each query, in pixels.
        keys: Place of each key.
        is_real: Which tokens, queries and keys alike, are no padding; None is all.
    """
    distances = torch.cdist(queries, keys).to(shares.device)
    if is_real is not None:
        shares = shares * is_real[:, None, None, :]
    of_query = (shares * distances).sum(dim=3) / shares.sum(dim=3)  # (b, h, n)
    if is_real is None:
        return of_query.mean(dim=(0, 2))
    weights = is_real[:, None].to(of_query.dtype).expand_as(of_query)
    return (of_query.nan_to_num() * weights).sum(dim=(0, 2)) / weights.sum(dim=(0, 2))


def measure_likeness(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """Return the mean cosine of each two different tokens of an image, NaN where there is one token."""
    count = tokens.shape[1]
    if count == 1:  # whose square is 1 but for rounding
        return tokens.new_full((len(tokens),), math.nan)
    total = normalize(tokens, dim=2).sum(dim=1).square().sum(dim=1)
    return (total - count) / (count * (count - 1))


def _lay_out(model: VisionModel, one: Recorded) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what queries give to keys without the class token, their places, and which are no padding."""
    shares = one.shares.detach().float()
    if isinstance(model, TNT):
        if one.level == "word":
            side = model.config.words
            places = _places((side, side), model.config.inner_stride)
            return shares, places, places, None
        places = _places(model.config.grid, model.config.patch_size)
        return shares[:, :, 1:, 1:], places, places, None
    if isinstance(model, T2TViT):
        rows, columns = model.config.grid
        if one.level == "token":
            places = _places((rows, columns), 16)
            return shares[:, :, 1:, 1:], places, places, None
        step = SPLIT_STEPS[one.layer]
        places = _places((rows * 16 // step, columns * 16 // step), step)
        return shares, places, places, None
    stage = int(one.name.split(".")[1])
    if isinstance(model, PyramidTNT):
        step = model.feature_levels[stage].reduction
        if one.level == "word":
            places = _places((SIDE, SIDE), step // SIDE)
            return shares, places, places, None
        assert one.grid is not None
        return shares, *_places_of_map(one.grid, step, model.config.sr_ratios[stage]), None
    assert isinstance(model, Twins)
    assert one.grid is not None
    step = math.prod(model.config.patch_sizes[: stage + 1])
    if one.windows is not None:
        places = _places((one.windows.side, one.windows.side), step)
        inside = shares.new_ones(1, one.windows.height * one.windows.width)
        is_real = cut_windows(inside, one.windows) > 0
        return shares, places, places, is_real.repeat(len(shares) // len(is_real), 1)
    return shares, *_places_of_map(one.grid, step, model.config.sr_ratios[stage]), None


def _places_of_map(grid: Grid, step: int, cell: int) -> tuple[Tensor, Tensor]:
    """Return the places of the tokens of a map, and of the cells of its reduced one, so many tokens a side."""
    reduced = (grid[0] // cell, grid[1] // cell)
    return _places(grid, step), _places(reduced, step * cell)


def _places(grid: Grid, step: int) -> Tensor:
    """Return the middle of each token of a grid (n, 2), row by row, in pixels."""
    axes = [(torch.arange(length, dtype=torch.float32) + 0.5) * step for length in grid]
    return torch.cartesian_prod(*axes)


@contextmanager
def _record_blocks(model: VisionModel) -> Iterator[Sequence[tuple[str, dict[Level, Tensor]]]]:
    """Yield a list that fills with the name of each block and its tokens (b, n, d), by what they are."""
    found: list[tuple[str, dict[Level, Tensor]]] = []
    handles = []
    for name, module in model.named_modules():
        if not BLOCK.fullmatch(name) or isinstance(module, nn.ModuleList):
            continue

        def keep(
            module: nn.Module, args: tuple[object, ...], output: object, name: str = name
        ) -> None:
            found.append((name, _tokens_of(model, output)))

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tokens_of(model: VisionModel, output: object) -> dict[Level, Tensor]:
    """Return the tokens of a block's output, without the class token."""
    if isinstance(model, TNT | PyramidTNT):
        assert isinstance(output, tuple)
        words, sentences = (part.detach().float() for part in output)
        return {"word": words, "sentence": sentences[:, model.num_class_tokens :]}
    assert isinstance(output, Tensor)
    return {"token": output.detach().float()[:, model.num_class_tokens :]}
