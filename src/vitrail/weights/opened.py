"""Weights by official names with all that is known of them, ready to be built as a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.display import Display
from vitrail.models.family import VisionModel
from vitrail.weights.account import Account
from vitrail.weights.checkpoint import Record, build_empty, load_weights

OURS = "vitrail"
"""The dialect of files that vitrail wrote."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Weights by official names, and all that is known of them."""

    record: Record
    """The description of the model; its classes are empty where the file names none."""
    weights: Mapping[str, Tensor]
    account: Account
    order_is_assumed: bool = False
    """Whether the names of the classes were given to the logits by their order alone."""
    dropped_head: str = ""
    """The doubt about a head that was dropped for one of another number of classes; empty where
    none was."""

    def build(self, device: str | torch.device = "cpu") -> VisionModel:
        """Build the model, ready for inference."""
        model = build_empty(self.record, self.account.path)
        load_weights(model, self.weights, self.account.path)
        model.classes, model.thresholds = self.record.classes, self.record.thresholds
        model.preprocess = self.record.preprocess
        return model.eval().to(device)


def show_account(opened: Opened, display: Display, *, trains_head: bool = False) -> None:
    """Show which project and model a file was taken for, and what may be wrong with that.

    Args:
        opened: The weights.
        display: Where it is shown.
        trains_head: Whether the head is trained next, so that a fresh one is what was meant.
    """
    if opened.account.dialect != OURS:
        display.note(opened.account.summary())
    for note in opened.account.notes:
        display.note(note)
    for doubt in opened.account.doubts:
        if trains_head and doubt == opened.dropped_head:
            display.note(doubt)
        else:
            display.warn(doubt)
