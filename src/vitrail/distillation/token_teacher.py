"""The teacher of token labels: its classifier, applied to every token of its last map of a whole image.

Shapes
    b images, c channels, h and w pixels, n tokens of the map, d channels of a token, k classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.choices import Precision
from vitrail.classes.matching import match_by_name
from vitrail.devices import autocast
from vitrail.display import Display
from vitrail.distillation.teacher import DIGITS, PLACES
from vitrail.errors import ConfigError, DataError, TrainingError, write_option
from vitrail.images.preprocess import Preprocess
from vitrail.inference.network import Artifact, require_classes
from vitrail.models.family import VisionModel
from vitrail.weights.digest import digest_weights
from vitrail.weights.opened import show_account


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTeacher:
    """A trained model that says of each token of an image how much it looks like every class."""

    path: str
    name: str
    """Name of the model."""
    digest: str
    """Hexadecimal digits that change with any of its weights."""
    model: VisionModel
    preprocess: Preprocess
    """How it reads images, whole ones squashed to its size, so that places in both correspond."""
    precision: Precision
    order: tuple[int, ...]
    """Index among its classes of each of the data's."""
    grid: tuple[int, int]
    """Tokens of its map along height and width."""

    @property
    def description(self) -> dict[str, Any]:
        """All that decides its labels of an image, as plain values for JSON."""
        return {
            "model": self.name,
            "digest": self.digest,
            "precision": self.precision,
            "preprocess": self.preprocess.to_dict(),
        }

    def label(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """Return logits of the data's classes for each token of at most PLACES normalised images.

        Black images fill up the batch: kernels differ by its size, and so would the last digits.

        Raises:
            TrainingError: One of them is NaN or Inf.
        """
        filled = torch.cat([images, images.new_zeros(PLACES - len(images), *images.shape[1:])])
        with torch.inference_mode(), autocast(images.device, self.precision):
            logits = classify_tokens(self.model, filled, self.grid).float()
        chosen = logits[: len(images), :, list(self.order)]
        if not chosen.isfinite().all():
            raise TrainingError(
                f"{write_option('teacher', self.path)}: answers with NaN or Inf; give a teacher "
                f"whose evaluation is finite, or {write_option('precision', 'float32')}"
            )
        return chosen


def open_token_teacher(
    artifact: Artifact,
    preprocess: Preprocess,
    classes: Sequence[str],
    device: torch.device,
    precision: Precision,
    display: Display,
) -> TokenTeacher:
    """Make a teacher of token labels of a file.

    Args:
        artifact: The file.
        preprocess: How it reads images, but for proportions.
        classes: Classes of the data.
        device: Device that computes.
        precision: Precision of matrix products.
        display: Told what the file is, where it is not ours.

    Raises:
        ConfigError: It cannot label tokens.
        DataError: It lacks classes of the data.
    """
    where, opened = write_option("teacher", artifact.path), artifact.weights
    if opened is None:
        raise ConfigError(
            f"{where}: is an exported file, which gives logits of whole images alone; give the "
            "weight file that it was made from"
        )
    record = opened.record
    require_classes(record, artifact.path)
    if record.is_multi_label:
        raise ConfigError(
            f"{where}: gives an image any number of classes, and a token label shares a token out "
            "among them; give a teacher whose images have one class"
        )
    if not record.classes:
        raise DataError(
            f"{where}: names no classes, so they cannot be matched with those of the data; name "
            "them with weights.classes=FILE"
        )
    order = match_by_name(record.classes, classes, where)
    show_account(opened, display)
    model = opened.build(device)
    squashed = replace(preprocess, resize="squash", crop=1.0)
    return TokenTeacher(
        path=artifact.path,
        name=record.model,
        digest=digest_weights(opened.weights, {"options": repr(sorted(record.options.items()))})[
            :DIGITS
        ],
        model=model,
        preprocess=squashed,
        precision=precision,
        order=tuple(order),
        grid=_measure_grid(model, squashed, device, where),
    )


def classify_tokens(
    model: VisionModel, images: Float[Tensor, "b c h w"], grid: tuple[int, int]
) -> Float[Tensor, "b n k"]:
    """Return the logits that a model's head gives each token of the last map, as if it were all that there is.

    Raises:
        ValueError: What enters the head has no such map.
    """
    features = model.forward_features(images)
    if features.ndim == 4 and tuple(features.shape[1:3]) == grid:
        features = features.permute(0, 3, 1, 2)  # as timm's networks of windows have it
        tokens = features.flatten(2).transpose(1, 2).flatten(0, 1)[:, None, None, :]
    elif features.ndim == 4 and tuple(features.shape[2:]) == grid:
        tokens = features.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
    elif features.ndim == 3 and features.shape[1] >= grid[0] * grid[1]:
        count = grid[0] * grid[1]
        others = features.shape[1] - count  # such as a class token, which a head may read alone
        tokens = features[:, others:].flatten(0, 1)[:, None].expand(-1, 1 + others, -1)
    else:
        raise ValueError(f"features are {tuple(features.shape)} and the map is {grid}")
    return model.forward_head(tokens).unflatten(0, (len(images), -1))


def _measure_grid(
    model: VisionModel, preprocess: Preprocess, device: torch.device, where: str
) -> tuple[int, int]:
    """Return height and width of a model's last map.

    Raises:
        ConfigError: It has none, or its classifier does not read it.
    """
    black = torch.zeros(1, preprocess.channels, *preprocess.size, device=device)
    try:
        with torch.inference_mode():
            (last,) = model.forward_intermediates(black, [-1])
            grid = (last.shape[2], last.shape[3])
            classify_tokens(model, black, grid)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"{where}: has no map of tokens that its classifier reads; give another model, such as "
            "a TNT, a T2T-ViT or a Twins"
        ) from error
    return grid
