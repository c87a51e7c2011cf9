"""Score methods: how faithful the maps of each are, for one model on many images, beside maps that know nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.choices import ExplanationMethod
from vitrail.data.sources import Source
from vitrail.display import Display
from vitrail.errors import MissingExtra, name_option, tell_count
from vitrail.explanation.batches import Batch, draw_images, read_batches
from vitrail.explanation.faithfulness import centre_maps, draw_random_maps
from vitrail.explanation.judge import (
    MEASURES,
    Judge,
    MeasureName,
    compare_with,
    compare_with_masks,
)
from vitrail.explanation.masks import open_masks
from vitrail.explanation.methods import explain
from vitrail.explanation.subject import Subject

RANDOM, CENTRE = "random map", "centre of the image"
"""Names of the maps that know nothing of image and model, which a method has to be better than."""


@dataclass(frozen=True)
class Spread:
    """A number over images."""

    mean: float
    std: float | None
    """Standard deviation between images; None of a single one."""
    images: int
    """Images that have the number."""


@dataclass
class MethodScore:
    """The numbers of one method."""

    method: str
    is_floor: bool = False
    """Whether it knows nothing of image and model."""
    values: dict[MeasureName, list[float]] = field(default_factory=dict)
    """By measure, the number of each image; NaN where a map has none, as an even one."""
    reasons: dict[MeasureName, str] = field(default_factory=dict)
    """Why a measure is not computed."""

    def add(self, measures: Mapping[MeasureName, Tensor]) -> None:
        """Keep the numbers of some more images."""
        for name, numbers in measures.items():
            self.values.setdefault(name, []).extend(numbers.double().tolist())

    def spread(self, name: MeasureName) -> Spread | None:
        """Return mean and spread of a measure, None where no image has it."""
        numbers = np.array(self.values.get(name, []))
        numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            return None
        std = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
        return Spread(float(numbers.mean()), std, len(numbers))


@dataclass(frozen=True)
class Scored:
    """The methods of one model on some images."""

    scores: tuple[MethodScore, ...]
    """One for each method, and the floors last."""
    images: int
    """Images that were explained."""
    found: int
    """Images that these were drawn of."""
    masked: int
    """Images that have a mask."""
    left_out: Mapping[str, str]
    """Why a method that suits the model was left out, by its name."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""


@dataclass(frozen=True)
class Request:
    """How methods are scored."""

    methods: Sequence[ExplanationMethod]
    """Methods that suit the model."""
    wanted: int | None = None
    """Class that is explained; None is the most probable one of each image."""
    limit: int = 32
    """Most images that are explained, drawn evenly from all of them."""
    masks: Path | None = None
    """Folder with the masks of images."""
    seed: int = 0
    """What all draws follow from: images, the order of equal values, shuffled weights, random maps."""


def score_methods(subject: Subject, source: Source, request: Request, display: Display) -> Scored:
    """Score methods on images, which need no labels: a map explains what the model answers.

    Args:
        subject: The model.
        source: The images.
        request: Which methods, and on how many of the images.
        display: Shows progress and warnings.

    Raises:
        ConfigError: The masks do not fit the images.
        DataError: None of the images can be read, or a mask cannot.
    """
    chosen = draw_images(len(source), request.limit, request.seed)
    masks = open_masks(request.masks, source, chosen, subject.preprocess)
    scorer = _Scorer(subject, request)
    bad: list[tuple[str, str]] = []
    explained = masked = 0
    for batch in read_batches(subject, source, chosen, bad, display, label="score", masks=masks):
        scorer.add(batch)
        explained += len(batch.indices)
        masked += int(batch.has_mask.sum())
    for name in () if masks is None else masks.empty:
        display.warn(
            f"{name}: its mask has nothing inside of what the model sees; not counted for "
            f"{MEASURES['pointing']} and {MEASURES['inside']}"
        )
    if masks is not None and masks.missing:
        display.warn(
            f"{len(masks.missing):,} of {tell_count(explained, 'image')} have no mask, such as "
            f"{masks.missing[0]}; not counted for {MEASURES['pointing']} and {MEASURES['inside']}"
        )
    scores = (*scorer.scores.values(), *scorer.floors.values())
    for score in scores:
        _give_reasons(score, request, scorer.left_out)
    return Scored(scores, explained, len(source), masked, scorer.left_out, tuple(bad))


class _Scorer:
    """Fills the numbers of each method batch by batch."""

    def __init__(self, subject: Subject, request: Request) -> None:
        self.subject = subject
        self.request = request
        self.judge = Judge(subject.answer, subject.is_multi_label, request.seed)
        self.left_out: dict[str, str] = {}
        self.scores: dict[ExplanationMethod, MethodScore] = {
            name: MethodScore(name) for name in request.methods
        }
        self.floors = {name: MethodScore(name, is_floor=True) for name in (RANDOM, CENTRE)}

    def add(self, batch: Batch) -> None:
        """Explain some images by all methods, and keep their numbers."""
        images = batch.images
        with torch.no_grad():
            logits = self.subject.answer(images)
        classes = logits.argmax(dim=1)
        if self.request.wanted is not None:
            classes = torch.full_like(classes, self.request.wanted)
        covered = self._explain("occlusion", images, classes)
        for name, score in [*self.scores.items()]:
            is_covered = name == "occlusion"
            maps = covered if is_covered else self._explain(name, images, classes)
            if maps is None:
                del self.scores[name]
                continue
            if self.judge.has_weights:
                change = self.judge.measure_change(name, images, classes, maps)
                score.add({"shuffled": change})
            self._add(score, batch, classes, maps, None if is_covered else covered)
        size = (images.shape[2], images.shape[3])
        random = draw_random_maps(batch.indices, size, self.request.seed)
        centre = centre_maps(len(images), size)
        for name, maps in ((RANDOM, random), (CENTRE, centre)):
            self._add(self.floors[name], batch, classes, maps.to(images.device), covered)

    def _explain(self, method: ExplanationMethod, images: Tensor, classes: Tensor) -> Tensor | None:
        """Return the finest maps of a method, None where it needs what is not installed."""
        if method in self.left_out:
            return None
        try:
            *_, finest = explain(method, self.subject.answer, images, classes).values()
        except MissingExtra as error:
            self.left_out[method] = str(error)
            return None
        return finest.float()

    def _add(
        self,
        score: MethodScore,
        batch: Batch,
        classes: Tensor,
        maps: Tensor,
        covered: Tensor | None,
    ) -> None:
        """Keep the numbers of maps that need no second map of their method."""
        score.add(self.judge.measure(batch.images, classes, maps))
        if covered is not None:
            score.add({"occlusion": compare_with(maps, covered)})
        if batch.masks is not None:
            score.add(compare_with_masks(maps[batch.has_mask], batch.masks))


def _give_reasons(score: MethodScore, request: Request, left_out: Mapping[str, str]) -> None:
    """Say of each measure that a method has no number of why that is."""
    for name in MEASURES:
        if score.spread(name) is not None:
            continue
        if name == "shuffled":
            reason = "knows no weights" if score.is_floor else "an exported file has no weights"
        elif name == "occlusion":
            reason = left_out.get(name, "is occlusion itself")
        elif name in ("pointing", "inside") and request.masks is None:
            reason = f"needs {name_option('masks')}"
        elif name in ("pointing", "inside"):
            reason = "no mask has anything inside"
        else:
            reason = "its maps are even, or the images are"
        score.reasons[name] = reason
