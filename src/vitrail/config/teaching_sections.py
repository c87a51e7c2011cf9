"""Settings of learning from a trained model, the teacher. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.config.ranges import find_not_positive, find_out_of_range


@dataclass(frozen=True, kw_only=True)
class DistillSection:
    """Distillation: learn from the answers of a trained model, the teacher (see docs/distillation.md)."""

    teacher: str | None = None
    """The teacher: a weight file, an exported file, or the name of published weights; null is off.
    It reads each view of an image in its own size and normalisation, and its classes are matched
    with the data's by name."""
    loss: Literal["soft", "hard", "dkd", "feature", "tokens"] = "soft"
    """What is learned from it: its probabilities (soft), its first answer (hard), its probabilities
    of the image's class and of the others apart (dkd, Zhao et al. 2022), the vector that its head
    reads (feature), or that vector and its last map, standardised (tokens)."""
    weight: float = 0.5
    """Share of the teacher's loss; the labels' has the rest."""
    temperature: float = 1.0
    """Temperature of soft and dkd: logits are divided by it, and the loss is multiplied by its
    square."""
    alpha: float = 1.0
    """Weight of the image's class in dkd."""
    beta: float = 8.0
    """Weight of the other classes in dkd."""
    topk: int = 10
    """Likeliest classes of which the teacher's logits are kept; the others share what is left
    evenly."""
    views: int | None = None
    """Views of each image that come again and again: epoch e has those of epoch e % views, so that
    later epochs need no teacher; null draws new ones in every epoch."""
    cache: Literal[False] | str | None = None
    """Folder of the teacher's answers, by view, which later runs take from there; null takes one in
    the user's cache, but none for the maps of loss=tokens unless `views` is set; false keeps none."""
    mixed: bool = False
    """Show the teacher the mixed and erased images that the student sees (Beyer et al. 2022), whose
    answers are not kept; false shows it the views before, and mixes its answers like the labels."""
    labels: str | None = None
    """Labelled images beside those of data.unlabelled, a folder of class folders or a list: their
    nearest neighbours by the student's features say, before the first update and at the end, how
    well these tell classes apart; null measures nothing."""

    @property
    def learns_features(self) -> bool:
        """Whether a teacher's features are learned, and not what it says of classes."""
        return self.loss in ("feature", "tokens")

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self, alpha=(0, None), beta=(0, None), topk=(1, None), views=(1, None)
        )
        problems += find_not_positive(self, "temperature")
        if not 0 < self.weight <= 1:
            problems.append(f"weight is {self.weight}; it must be above 0 and at most 1")
        if self.mixed and self.cache:
            problems.append(
                f"cache={self.cache} cannot keep answers to mixed images, which never come again; "
                "set cache to null, or mixed to false"
            )
        if self.mixed and self.loss == "dkd":
            problems.append("mixed does not go with loss=dkd, which needs the class of an image")
        return problems


@dataclass(frozen=True, kw_only=True)
class TokenLabelsSection:
    """Token labeling: learn what a teacher says of every token of an image (see docs/token_labeling.md)."""

    folder: str | None = None
    """Folder that `vitrail make-token-labels` wrote for these training images; null is off."""
    weight: float = 0.5
    """Weight of the tokens' loss beside the images', whose weight is 1."""
    label: Literal["image", "map", "both"] = "image"
    """What the class of an image is learned from: its own label (image, the paper's formula), the
    probabilities of the map over the view (map, as the paper's code does), or half of each, with 0.9
    of the map where its likeliest class is another (both, the code's ground-truth option)."""
    mix_token: float = 1.0
    """Probability of MixToken for a batch: images get a box of their partners' tokens behind the
    first layers, and labels and maps are mixed accordingly. It takes the place of CutMix."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return find_out_of_range(self, weight=(0, None), mix_token=(0, 1))
