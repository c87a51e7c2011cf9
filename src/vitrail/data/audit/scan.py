"""Scan a manifest: worker processes inspect every image that is new or changed, and the results are kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vitrail.data.audit.inspect_file import Finding, Inspection, inspect
from vitrail.data.loader import count_usable_cores, with_workers
from vitrail.data.lost_workers import until_lost
from vitrail.data.manifest import FOUND, Manifest
from vitrail.display import Display
from vitrail.errors import VitrailError
from vitrail.images.pixels import UnreadableImage

BATCH = 64
"""Images that a worker inspects at a time."""
FEW = 500
"""Most images that are inspected without workers, faster than processes start."""
SAVE_EVERY_S = 60
"""Seconds between two saves of the results."""


@dataclass(frozen=True)
class _Files(Dataset[tuple[int, Inspection]]):
    """Inspects the file of an index."""

    manifest: Manifest

    def __getitem__(self, index: int) -> tuple[int, Inspection]:
        try:
            data = self.manifest.read(index)
            return index, inspect(self.manifest.path(index).name, data, self.manifest.pixels)
        except UnreadableImage as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        return index, Inspection(Finding.UNREADABLE, reason, 0, 0, 0, bytes(16), 0)


def check_images(
    manifest: Manifest, file: Path, display: Display, workers: int | None = None
) -> Manifest:
    """Inspect the images that were not inspected yet, and save the manifest, also when it is interrupted.

    Args:
        manifest: The images as they were listed.
        file: File to save the manifest to; where it cannot be written, a warning says so and only
            time is lost.
        display: Shows the progress.
        workers: Number of worker processes; None takes as many as there are cores.
    """
    todo = np.flatnonzero(~manifest.inspected)
    if not len(todo):
        return manifest
    workers = count_usable_cores() if workers is None else workers
    if len(todo) <= FEW:
        workers = 0
    columns = {name: getattr(manifest, name).copy() for name in FOUND}
    reasons = {reason: number for number, reason in enumerate(manifest.reasons)}
    loader = DataLoader(
        _Files(manifest),
        sampler=todo.tolist(),
        batch_size=BATCH,
        **with_workers(workers),
        collate_fn=list,
        # or each pass takes a number from the global state, and a first run differs
        generator=torch.Generator(),
    )

    def save() -> Manifest:
        inspected = replace(manifest, reasons=tuple(reasons), **columns)
        try:
            inspected.save(file)
        except (VitrailError, OSError) as error:
            display.warn(f"{error}; the images will be looked at again next time")
        return inspected

    display.begin("look at images", len(todo))
    saved = time.monotonic()
    try:
        for batch in until_lost(loader.__iter__, loader.num_workers):
            for index, inspection in batch:
                _note_inspection(columns, reasons, index, inspection)
            display.advance(len(batch))
            if time.monotonic() - saved > SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    finally:
        display.end()
        manifest = save()
    return manifest


def _note_inspection(
    columns: dict[str, NDArray[Any]], reasons: dict[str, int], index: int, inspection: Inspection
) -> None:
    """Write what was found in one image to the columns of the manifest; a new reason gets the next number."""
    reason = -1
    if inspection.reason:
        reason = reasons.setdefault(inspection.reason, len(reasons))
    columns["inspected"][index] = True
    columns["findings"][index] = inspection.findings
    columns["reason"][index] = reason
    columns["format"][index] = inspection.format
    columns["width"][index] = inspection.width
    columns["height"][index] = inspection.height
    columns["content"][index] = np.frombuffer(inspection.content, np.uint64)
    columns["picture"][index] = inspection.picture
