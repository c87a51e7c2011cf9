"""Distillation of a run: the answers to its views, found or computed; targets made of them, and the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vitrail.config.teaching_sections import DistillSection
from vitrail.data.loader import Batch
from vitrail.distillation.answers import AnswerFiles, Layout
from vitrail.distillation.losses import (
    decoupled_loss,
    feature_loss,
    hard_loss,
    soft_binary_loss,
    soft_loss,
    token_loss,
)
from vitrail.distillation.projection import take_projected
from vitrail.distillation.teacher import Teacher
from vitrail.distillation.tokens import Grid
from vitrail.images.preprocess import Preprocess


@dataclass(kw_only=True, eq=False)
class Distillation:
    """A teacher with the answers that are known of it, and how a student learns from them."""

    section: DistillSection
    teacher: Teacher
    layout: Layout
    preprocess: Preprocess
    """The student's."""
    device: torch.device
    is_multi_label: bool
    files: AnswerFiles | None
    """Where answers are kept; None keeps them for one update."""
    val_answers: NDArray[np.int64] | None = None
    """First answer of the teacher to each validation image, -1 where it cannot be read."""
    val_numbers: dict[str, Any] = field(default_factory=dict)
    """The teacher's own accuracy."""
    grid: Grid | None = None
    """The student's last map, where the teacher's is learned."""
    head: nn.Module | None = None
    """The student's head, which projects what it reads, where features are learned."""
    _known: NDArray[Any] = field(init=False)
    _known_keys: NDArray[np.uint64] = field(init=False)
    _fresh: dict[int, NDArray[Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._know(np.empty(0, self.layout.row))

    @property
    def columns(self) -> int:
        """Numbers that a target has of the teacher, behind those of the labels."""
        return self.layout.num_classes + self.layout.num_features

    def begin_epoch(self, epoch: int) -> None:
        """Read the answers that are kept of an epoch's views."""
        views = self.section.views
        self.begin_view(epoch if views is None else epoch % views)

    def begin_view(self, view: int) -> None:
        """Read the answers that are kept of a view of all images."""
        self._fresh.clear()
        if self.files is not None:
            self._know(self.files.read(view))

    def fetch(self, batches: list[Batch]) -> None:
        """Bring the answers to the views of an update into memory; those not known are computed, and kept.

        Raises:
            CheckpointError: They cannot be written.
        """
        self._fresh.clear()
        if not self.section.mixed:
            for batch in batches:
                self._find(batch)

    def make_targets(self, batch: Batch) -> Float[Tensor, "b columns"]:
        """Return the part of the targets of a batch that is the teacher's, before any mixing."""
        rows = self._find(batch)
        logits, vectors = self.layout.unpack(rows, self.device)
        return torch.cat([self._shape(logits), vectors], 1)

    def make_mixed_targets(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b columns"]:
        """Return the teacher's part of the targets of images as the student's network reads them."""
        logits, vectors = self.teacher.answer_normalised(images, self.preprocess)
        keys = np.zeros(len(images), np.uint64)
        logits, kept = self.layout.unpack(self._pack(keys, logits, vectors), self.device)
        return torch.cat([self._shape(logits), kept], 1)

    def make_val_targets(self, batch: Batch) -> Float[Tensor, "b features"]:
        """Return the teacher's features of validation images, which are views of their own, by their numbers."""
        self._fresh.clear()
        rows = self._find(batch._replace(keys=batch.indices))
        return self.layout.unpack(rows, self.device)[1]

    def loss(
        self,
        logits: Float[Tensor, "b k"],
        targets: Float[Tensor, "b all"],
    ) -> Float[Tensor, ""]:
        """Return the loss between a student's answers and the teacher's, of the images summed.

        Args:
            logits: The student's logits.
            targets: Targets of the labels, and the teacher's behind them.
        """
        section, k = self.section, logits.shape[1]
        answers = targets[:, k : 2 * k]
        if section.learns_features:
            assert self.head is not None
            projected = take_projected(self.head)[: len(logits)].float()
            return self.feature_loss(projected, targets[:, 2 * k :])
        if section.loss == "hard":
            return hard_loss(logits, answers)
        if section.loss == "dkd":
            labels = targets[:, :k].argmax(1)
            return decoupled_loss(
                logits, answers, labels, section.temperature, section.alpha, section.beta
            )
        of_kind = soft_binary_loss if self.is_multi_label else soft_loss
        return of_kind(logits, answers, section.temperature)

    def feature_loss(
        self, projected: Float[Tensor, "b all"], features: Float[Tensor, "b all"]
    ) -> Float[Tensor, ""]:
        """Return the loss between a student's projected features and the teacher's, of the images summed."""
        if self.section.loss == "tokens":
            return token_loss(projected, features, self.teacher.num_vector)
        return feature_loss(projected, features)

    def agreement(self) -> Agreement:
        """Begin to count how often the student answers the validation images as its teacher does."""
        assert self.val_answers is not None
        return Agreement(self.val_answers)

    def close(self) -> None:
        """Write what waits to be kept."""
        if self.files is not None:
            self.files.close()

    def _know(self, rows: NDArray[Any]) -> None:
        """Have answers at hand, sorted by key."""
        self._known = rows
        self._known_keys = np.ascontiguousarray(rows["key"])  # or every search would copy them

    def _shape(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return what the loss takes of the teacher's logits: what can be mixed, wherever images may be."""
        loss = self.section.loss
        if loss == "dkd":
            return logits
        if loss == "hard":
            return one_hot(logits.argmax(1), logits.shape[1]).float()
        scaled = logits / self.section.temperature
        return scaled.sigmoid() if self.is_multi_label else scaled.softmax(1)

    def _find(self, batch: Batch) -> NDArray[Any]:
        """Return the answers to the views of a batch, and compute those that are not known."""
        keys = _keys(batch.keys)
        rows = np.zeros(len(keys), self.layout.row)
        missing = np.ones(len(keys), np.bool_)
        if len(self._known):
            at = np.searchsorted(self._known_keys, keys).clip(max=len(self._known) - 1)
            is_known = self._known_keys[at] == keys
            rows[is_known] = self._known[at[is_known]]
            missing &= ~is_known
        for number in np.flatnonzero(missing).tolist():
            row = self._fresh.get(int(keys[number]))
            if row is not None:
                rows[number] = row
                missing[number] = False
        if missing.any():
            rows[missing] = self._compute(batch.images[torch.from_numpy(missing)], keys[missing])
        return rows

    def _compute(self, pixels: UInt[Tensor, "b c h w"], keys: NDArray[np.uint64]) -> NDArray[Any]:
        """Ask the teacher for views that are not known, and keep its answers."""
        logits, vectors = self.teacher.answer(pixels.to(self.device, non_blocking=True))
        rows = self._pack(keys, logits, vectors)
        self._fresh.update(zip(keys.tolist(), rows, strict=True))
        if self.files is not None:
            self.files.add(rows)
        return rows

    def _pack(
        self, keys: NDArray[np.uint64], logits: Tensor, vectors: Tensor | None
    ) -> NDArray[Any]:
        """Return what is kept of answers; probabilities are what counts where an image has one class."""
        if not self.is_multi_label:
            logits = logits.log_softmax(1)
        return self.layout.pack(keys, logits, vectors)


@dataclass
class Agreement:
    """How often a student's first answer to the validation images is its teacher's."""

    answers: NDArray[np.int64]
    """The teacher's first answer to each image, -1 where it cannot be read."""
    equal: int = 0
    images: int = 0

    @property
    def counts(self) -> list[int]:
        """Equal first answers, and images that both read."""
        return [self.equal, self.images]

    def add(self, batch: Batch, logits: Float[Tensor, "b k"]) -> None:
        """Count the images of a batch."""
        theirs = self.answers[batch.indices.numpy()]
        ours = logits.argmax(1).cpu().numpy()
        self.equal += int((ours == theirs).sum())
        self.images += int((theirs >= 0).sum())


def _keys(keys: Int64[Tensor, " b"]) -> NDArray[np.uint64]:
    return keys.cpu().numpy().astype(np.uint64)
