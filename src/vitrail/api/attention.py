"""Attention from Python: what each query of a model gives to its keys, by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.api.arguments import checked
from vitrail.api.results import ResultList, Table
from vitrail.errors import ConfigError, DataError, printable, write_option
from vitrail.explanation.attention import Level, Windows, record_attention
from vitrail.explanation.relevance import in_evaluation
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.predictor import view_or_reason
from vitrail.models.family import VisionModel
from vitrail.weights.loading import load_model


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one module to one image."""

    name: str
    """Name of the module."""
    layer: int
    """Index among the modules of its level, in the order in which they compute."""
    level: Level
    """What attends: word, sentence, split, token, window or reduced."""
    values: NDArray[np.float32]
    """Shares that queries give to keys (heads, queries, keys), of words and windows with one more
    dimension in front, of their sentence or window."""
    windows: Windows | None
    """Where windows lie, of attention in windows."""


@dataclass(frozen=True)
class Attention(ResultList[AttentionMap]):
    """The attention of a model to one image, in the order in which its modules compute."""

    def tables(self) -> Sequence[Table]:
        """Return one row a module."""
        rows = [
            (one.name, one.level, str(one.layer), " x ".join(map(str, one.values.shape)))
            for one in self.items
        ]
        return [Table("", ("module", "level", "layer", "shape"), tuple(rows))]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a module, with its shape."""
        return [
            {
                "name": one.name,
                "level": one.level,
                "layer": one.layer,
                "shape": one.values.shape,
            }
            for one in self.items
        ]


@checked
def attention(
    model: str | Path | VisionModel, image: str | Path | Tensor, *, level: Level | None = None
) -> Attention:
    """Return the attention of one of our models to an image, by the names of its modules.

        for one in vitrail.attention("best.safetensors", "robin.jpg", level="word"):
            print(one.name, one.values.shape)

    Args:
        model: A model, or a weight file, of any project.
        image: An image, or what the model is to see, normalised (channels, height, width).
        level: What attends; None is all.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: The attention of such a model is not known, or the model does not know how
            images are read.
        DataError: The image cannot be read.
    """
    net = model if isinstance(model, VisionModel) else load_model(model)
    first = next(net.parameters())
    images = _read(net, image)[None].to(device=first.device, dtype=first.dtype)
    with torch.no_grad(), in_evaluation(net), record_attention(net) as recorded:
        try:
            net(images)
        except ValueError as error:
            raise ConfigError(f"image: {error}") from error
    items = []
    for one in recorded:
        if level not in (None, one.level):
            continue
        values = one.shares.float().cpu().numpy()
        if one.level not in ("word", "window"):
            values = values[0]
        items.append(AttentionMap(one.name, one.layer, one.level, values, one.windows))
    if level is not None and not items:
        there = ", ".join(dict.fromkeys(one.level for one in recorded))
        raise ConfigError(f"{write_option('level', level)}: this model has {there}")
    return Attention(tuple(items))


def _read(model: VisionModel, image: str | Path | Tensor) -> Tensor:
    """Return what a model is to see of an image (c, h, w).

    Raises:
        ConfigError: The model does not know how images are read, or the tensor is of another shape.
        DataError: The image cannot be read.
    """
    if isinstance(image, Tensor):
        wanted = (model.config.in_channels, *model.config.size)
        if image.ndim != 3 or not image.is_floating_point():
            raise ConfigError(
                f"image is {image.dtype} of {tuple(image.shape)}; it must be what the model sees, "
                f"normalised, of {wanted}"
            )
        return image
    if not isinstance(model.preprocess, Preprocess):
        raise ConfigError(
            "model: does not know how images are read; load it with vitrail.load_model, or give "
            "the image as a tensor"
        )
    view = view_or_reason(str(image), model.preprocess)
    if isinstance(view, str):
        raise DataError(f"{printable(image)}: {view}")
    return normalise(view[None], model.preprocess.mean, model.preprocess.std)[0]
