"""Judge maps: the numbers of faithfulness that a sheet and a table of methods show, and whether a method fails."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.choices import ExplanationMethod
from vitrail.explanation.explainer import Explained, Explainer
from vitrail.explanation.faithfulness import (
    blur,
    correlate_ranks,
    enlarge,
    follow,
    mean_colour,
    measure_area,
    measure_saco,
    order_pixels,
    point,
    share_inside,
    shuffle_weights,
)
from vitrail.explanation.methods import explain
from vitrail.images.preprocess import normalise
from vitrail.inference.decision import to_probabilities

MeasureName = Literal[
    "saco", "insertion", "deletion", "shuffled", "occlusion", "pointing", "inside"
]
MEASURES: Mapping[MeasureName, str] = {
    "saco": "SaCo",
    "insertion": "insertion",
    "deletion": "deletion",
    "shuffled": "shuffled weights",
    "occlusion": "like occlusion",
    "pointing": "pointing game",
    "inside": "inside the mask",
}
"""Titles of the measures."""
READING = (
    "SaCo is from -1 to 1; it and the area under insertion are better high, the area under deletion "
    "low, and the rank correlation with the map of shuffled weights near 0"
)
"""How the numbers are to be read."""
FAILURE = "the map hardly changes where the weights are shuffled"
"""What is said of a map that fails the sanity check."""
ONE_COLOUR = 1e-4
"""Largest distance of a normalised image from its mean colour up to which it shows nothing else."""
FAILS_FROM = 0.5
"""Rank correlation with the map of shuffled weights from which on a map shows the image, not the model."""


@dataclass(frozen=True)
class Judged:
    """How faithful one map of one image is."""

    saco: float
    """From -1 to 1; NaN of an even map."""
    insertion: float
    """Area under the curve; NaN, as all three, of an image of one colour."""
    deletion: float
    shuffled: float | None
    """Rank correlation with the map of shuffled weights; None where there are no weights, NaN where
    one of the maps is even."""

    @property
    def fails(self) -> bool:
        """Whether the map hardly changes with the weights; an image of one colour has nothing to show."""
        return fails(self.shuffled) and not math.isnan(self.insertion)

    def __str__(self) -> str:
        names: tuple[MeasureName, ...] = ("saco", "insertion", "deletion", "shuffled")
        parts = []
        for name in names:
            value = getattr(self, name)
            if value is not None and not math.isnan(value):
                parts.append(f"{MEASURES[name]} {value:.2f}")
        if math.isnan(self.insertion):
            parts.insert(0, "one colour, of which nothing can be taken away")
        text = ", ".join(parts)
        return f"{text}: FAILS, {FAILURE}" if self.fails else text


@dataclass
class Judge:
    """What judges the maps of one model."""

    answer: Callable[[Tensor], Tensor]
    """The model, or what runs an exported file."""
    is_multi_label: bool
    seed: int = 0
    _shuffled: nn.Module | None = field(default=None, init=False, repr=False)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights that can be shuffled, as an exported file has none."""
        return isinstance(self.answer, nn.Module)

    def score(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the probability (b) of a class for each normalised image (b, c, h, w)."""
        logits = self.answer(images).float()
        odds = to_probabilities(logits, is_multi_label=self.is_multi_label)
        return odds.to(classes.device).gather(1, classes[:, None])[:, 0]

    def measure(self, images: Tensor, classes: Tensor, maps: Tensor) -> dict[MeasureName, Tensor]:
        """Return SaCo and the areas under insertion and deletion of each map; NaN of images of one colour.

        The order of equal values follows from the image itself, so that a picture has the same
        numbers wherever it stands among others.

        Args:
            images: Normalised images (b, c, h, w).
            classes: Index of the class for each image (b).
            maps: Maps (b, h, w), at most as large as the images.
        """
        size = (images.shape[2], images.shape[3])
        large = enlarge(maps, size)
        order = order_pixels(large, [*map(_number_of, images)], self.seed)
        inserted = follow(self.score, blur(images), images, classes, order)
        even = mean_colour(images)
        deleted = follow(self.score, images, even, classes, order)
        measures: dict[MeasureName, Tensor] = {
            "saco": measure_saco(self.score, images, even, classes, large, order),
            "insertion": measure_area(inserted),
            "deletion": measure_area(deleted),
        }
        # nothing can be taken away from it, and every order would be right
        is_plain = (images - even).abs().amax(dim=(1, 2, 3)) < ONE_COLOUR
        return {name: numbers.masked_fill(is_plain, math.nan) for name, numbers in measures.items()}

    def measure_change(
        self, method: ExplanationMethod, images: Tensor, classes: Tensor, maps: Tensor
    ) -> Tensor:
        """Return the rank correlation (b) of maps with those of the model whose weights were shuffled.

        Args:
            method: The method of the maps.
            images: Normalised images (b, c, h, w).
            classes: Index of the class for each image (b).
            maps: The finest maps (b, h, w) of the method.
        """
        if self._shuffled is None:
            assert isinstance(self.answer, nn.Module)
            self._shuffled = shuffle_weights(self.answer, self.seed)
        *_, others = explain(method, self._shuffled, images, classes).values()
        return correlate_ranks(maps.flatten(1), others.flatten(1))


def judge_explained(judge: Judge, explainer: Explainer, explained: Explained) -> tuple[Judged, ...]:
    """Return how faithful the finest map of each class of an image is; nothing of an image without maps.

    It takes some thirty answers for each map, and a map of the model whose weights are shuffled.

    Args:
        judge: What judges the model's maps.
        explainer: What made them.
        explained: The image and its maps.
    """
    if explained.maps is None or explained.view is None:
        return ()
    *_, finest = explained.maps.values()
    maps = torch.from_numpy(finest).to(explainer.device)
    classes = torch.tensor(explained.classes[: len(maps)], device=explainer.device)
    preprocess = explainer.preprocess
    view = explained.view[None].to(explainer.device)
    image = normalise(view, preprocess.mean, preprocess.std)
    images = image.expand(len(maps), -1, -1, -1).contiguous()
    measures = judge.measure(images, classes, maps)
    if judge.has_weights:
        measures["shuffled"] = judge.measure_change(explainer.method, images, classes, maps)
    rows = {name: numbers.tolist() for name, numbers in measures.items()}
    judged = []
    for row in range(len(maps)):
        numbers = {name: values[row] for name, values in rows.items()}
        judged.append(Judged(**{"shuffled": None, **numbers}))
    return tuple(judged)


def _number_of(image: Tensor) -> int:
    """Return a number that follows from what an image shows, and not from its last digits."""
    return zlib.crc32((image * 64).round().to(torch.int16).cpu().numpy().tobytes())


def compare_with(maps: Tensor, others: Tensor) -> Tensor:
    """Return the rank correlation (b) of maps with larger ones (b, h, w) of the same images."""
    large = enlarge(maps, (others.shape[1], others.shape[2]))
    return correlate_ranks(large.flatten(1), others.flatten(1))


def compare_with_masks(maps: Tensor, masks: Tensor) -> dict[MeasureName, Tensor]:
    """Return the pointing game and the share inside the mask, of maps no larger than their masks (b, h, w)."""
    large = enlarge(maps, (masks.shape[1], masks.shape[2]))
    return {"pointing": point(large, masks), "inside": share_inside(large, masks)}


def fails(change: float | None) -> bool:
    """Say whether a map hardly changes with the weights, by its rank correlation with that of shuffled ones."""
    return change is not None and change >= FAILS_FROM
