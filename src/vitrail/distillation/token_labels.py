"""Token labeling of a run: maps cut out as its views are, the targets made of them, MixToken, and the loss.

All Tokens Matter (Jiang et al. 2021, https://arxiv.org/abs/2104.10858).

Shapes
    b images, n tokens of the student's last map, k classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitrail.config.teaching_sections import TokenLabelsSection
from vitrail.data.loader import Batch
from vitrail.distillation.token_head import mix_tokens, set_box, take_answers
from vitrail.distillation.token_maps import MapFiles
from vitrail.images.batch_augment import draw_box
from vitrail.models.family import VisionModel

ALPHA = 1.0
"""Parameter of the Beta distribution of what MixToken leaves of an image, the paper's."""
AGREEING, DISAGREEING = 0.5, 0.9
"""Share of the map in a class target of both, where its likeliest class is that of the image, and
where it is not; those of the paper's code."""


@dataclass(kw_only=True, eq=False)
class TokenLabels:
    """The maps of a teacher, and how a student's tokens learn from them."""

    section: TokenLabelsSection
    files: MapFiles
    about: dict[str, Any]
    """What the maps are of, as their folder says."""
    digest: str
    """Hexadecimal digits that change with any of that."""
    grid: tuple[int, int]
    """Tokens of the student's last map along height and width."""
    smoothing: float
    """Label smoothing."""
    device: torch.device
    model: VisionModel | None = None
    """The student, once it has a classifier of tokens."""

    @property
    def columns(self) -> int:
        """Numbers of a target behind those of the labels: a class target, and one of each token."""
        return self.files.layout.num_classes * (1 + self.grid[0] * self.grid[1])

    def make_targets(
        self, batch: Batch, labels: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b columns"]:
        """Return the class targets and those of the tokens, of the views of a batch.

        An image that has no map has the target of its label for all of them. Each weighs what the
        image's label does.

        Args:
            batch: The images.
            labels: Targets of their labels, times the weights of their classes.

        Raises:
            DataError: The map of an image is damaged.
        """
        records = self.files.read(batch.indices.tolist())
        maps = self.files.layout.unpack(records, self.device)
        assert batch.places is not None
        places = batch.places.to(self.device)
        weights = labels.sum(1)[:, None, None, None]
        whole = self._soften(align(maps, places, (1, 1))) * weights
        of_tokens = self._soften(align(maps, places, self.grid)) * weights
        known = torch.from_numpy(records["is_known"] == 1).to(self.device)[:, None]
        of_map = torch.where(known, whole[:, :, 0, 0], labels)
        tokens = of_tokens.flatten(2).transpose(1, 2)  # (b, n, k)
        tokens = torch.where(known[:, None], tokens, labels[:, None])
        return torch.cat([self._choose(labels, of_map), tokens.flatten(1)], 1)

    def mix(self, targets: Float[Tensor, "b all"], key: int | None) -> Float[Tensor, "b all"]:
        """Draw the box of a batch for MixToken, which the stem obeys, and return the targets of what it leaves.

        Args:
            targets: Targets of the labels and all that is behind them.
            key: Seed of the batch on this rank; None mixes nothing.
        """
        drawn = None
        if key is not None:
            drawn = draw_box(self.grid, ALPHA, self.section.mix_token, key)
        if self.model is not None:
            set_box(self.model, None if drawn is None else drawn[0])
        if drawn is None:
            return targets
        box, share = drawn
        k = self.files.layout.num_classes
        classes, tokens = targets[:, : 2 * k], targets[:, 2 * k :].unflatten(1, (-1, k))
        classes = classes * share + classes.flip(0) * (1 - share)
        return torch.cat([classes, mix_tokens(tokens, self.grid, box, self.grid).flatten(1)], 1)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch get tokens of each other, so that they have to be computed together."""
        return self.section.mix_token > 0

    def loss(
        self,
        logits: Float[Tensor, "b k"],
        targets: Float[Tensor, "b all"],
        of_classes: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, ""]:
        """Return the loss of the image and of its tokens, over the images.

        Args:
            logits: The student's logits of the images.
            targets: Targets of the labels, and those of `make_targets` behind them.
            of_classes: Loss between logits and targets of images, summed.
        """
        assert self.model is not None
        k = logits.shape[1]
        answers = take_answers(self.model)[: len(logits)].float()
        return of_classes(logits, targets[:, k : 2 * k]) + self.section.weight * token_loss(
            answers, targets[:, 2 * k :].unflatten(1, (-1, k))
        )

    def _soften(self, maps: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        return maps.softmax(1) * (1 - self.smoothing) + self.smoothing / maps.shape[1]

    def _choose(
        self, labels: Float[Tensor, "b k"], of_map: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        """Return the class targets that the settings ask for."""
        if self.section.label == "image":
            return labels
        if self.section.label == "map":
            return of_map
        agrees = labels.argmax(1) == of_map.argmax(1)
        share = torch.where(agrees, AGREEING, DISAGREEING)[:, None]
        return share * of_map + (1 - share) * labels


def align(
    maps: Float[Tensor, "b k h w"], places: Float[Tensor, "b 5"], size: tuple[int, int]
) -> Float[Tensor, "b k out_h out_w"]:
    """Cut maps of whole images out where their views were, mirror them as these, and bring them to a size.

    Args:
        maps: Maps of logits.
        places: Where the views were, as `Place` says.
        size: Height and width.
    """
    # takes seconds to import, and only training needs it
    from torchvision.ops import roi_align

    height, width = maps.shape[2:]
    numbers = torch.arange(len(maps), device=maps.device, dtype=maps.dtype)[:, None]
    boxes = places[:, :4] * places.new_tensor([width, height, width, height])
    aligned = roi_align(maps, torch.cat([numbers, boxes], 1), size, aligned=True)
    mirrored = places[:, 4].bool()[:, None, None, None]
    return torch.where(mirrored, aligned.flip(3), aligned)


def token_loss(
    answers: Float[Tensor, "b n k"], targets: Float[Tensor, "b n k"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of tokens, its mean over those of an image, summed over the images."""
    total = cross_entropy(answers.flatten(0, 1), targets.flatten(0, 1), reduction="sum")
    return total / answers.shape[1]
