"""What token labels add to a student: a classifier of tokens, left out of weight files, and MixToken behind its stem.

Shapes
    b images, n tokens of the last map, d channels of a token, k classes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.images.batch_augment import Box
from vitrail.models.family import VisionModel, build_head

NAME = "token_head"
"""Name of the classifier within the head, whose parameters it so belongs to."""


def add_token_head(model: VisionModel, grid: tuple[int, int]) -> None:
    """Let a model in training classify the tokens of its last map, and mix those behind its stem.

    Args:
        model: The model, whose `embedding` is the stem.
        grid: Height and width of the last map.
    """
    head: Any = model.get_classifier()
    of_tokens = build_head(model.num_features, head.out_features, head.bias is not None)
    head.add_module(NAME, of_tokens.to(head.weight.device))
    norm, stem = model.norm, model.get_submodule(model.embedding)
    for module in (norm, stem):
        # not a layer of theirs; in a copy of the model it is the copy's, and it is never frozen, so
        # that it tells whether the model is trained
        object.__setattr__(module, NAME, head.get_submodule(NAME))
        object.__setattr__(module, "grid", grid)
    object.__setattr__(stem, "box", None)
    object.__setattr__(stem, "size", model.map_size(0))
    norm.register_forward_hook(_classify_tokens)
    stem.register_forward_hook(_mix_output)


def take_answers(model: VisionModel) -> Float[Tensor, "b n k"]:
    """Return the logits of the tokens of the batch that was computed last, once."""
    norm: Any = model.norm
    answers = norm.answers
    norm.answers = None  # or the activations would be kept
    assert isinstance(answers, Tensor)
    return answers


def set_box(model: VisionModel, box: Box | None) -> None:
    """Say in which box of the grid the next batch gets its partners' tokens; None mixes none."""
    stem: Any = model.get_submodule(model.embedding)
    stem.box = box


def without_token_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model without its classifier of tokens."""
    return {name: tensor for name, tensor in weights.items() if f".{NAME}." not in name}


def mix_tokens(
    tokens: Float[Tensor, "b n *rest"], size: tuple[int, int], box: Box, grid: tuple[int, int]
) -> Float[Tensor, "b n *rest"]:
    """Return the tokens of images, those inside a box taken from the image's partner in the reversed batch.

    Args:
        tokens: Tokens of a map, row by row.
        size: Height and width of the map.
        box: The box, in tokens of the grid.
        grid: Height and width of the last map, over which the box is drawn.
    """
    inside = mark_box(size, box, grid).flatten().to(tokens.device)
    return torch.where(inside.view(1, -1, *(1,) * (tokens.ndim - 2)), tokens.flip(0), tokens)


def mark_box(size: tuple[int, int], box: Box, grid: tuple[int, int]) -> Tensor:
    """Return which cells of a map lie in a box that is drawn over another grid of the same image."""
    top, bottom, left, right = box
    inside = torch.zeros(size, dtype=torch.bool)
    rows, columns = (whole / cells for whole, cells in zip(size, grid, strict=True))
    inside[
        round(top * rows) : round(bottom * rows), round(left * columns) : round(right * columns)
    ] = True
    return inside


def _classify_tokens(norm: Any, inputs: Any, tokens: Float[Tensor, "b s d"]) -> None:
    if norm.token_head.training:
        rows, columns = norm.grid
        norm.answers = norm.token_head(tokens[:, -rows * columns :])


def _mix_output(stem: Any, inputs: tuple[Tensor, ...], output: Any) -> Any:
    """Mix what a stem gives: tokens (b, n, d), or (b * n, p, e) of words, or both, or tokens and their map's size."""
    if stem.box is None or not stem.token_head.training:
        return None
    if isinstance(output, tuple) and isinstance(output[1], int):
        tokens, height, width = output
        return mix_tokens(tokens, (height, width), stem.box, stem.grid), height, width

    def mix(part: Tensor) -> Tensor:
        of_images = part.reshape(len(inputs[0]), stem.size[0] * stem.size[1], -1)
        return mix_tokens(of_images, stem.size, stem.box, stem.grid).reshape(part.shape)

    return tuple(map(mix, output)) if isinstance(output, tuple) else mix(output)
