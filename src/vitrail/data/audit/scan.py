"""Every image of a manifest read once, by many processes; only what changed is read again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitrail.data.audit.inspect_file import Finding, Inspection, inspect
from vitrail.data.loader import leave_signals, until_lost, usable_cores
from vitrail.data.manifest import FOUND, Manifest
from vitrail.display import Display
from vitrail.errors import VitrailError
from vitrail.images.pixels import UnreadableImage

BATCH = 64
FEW = 500
"""Images that are read faster than processes start."""
SAVE_EVERY_S = 60


@dataclass(frozen=True)
class _Files(Dataset[tuple[int, Inspection]]):
    manifest: Manifest

    def __getitem__(self, index: int) -> tuple[int, Inspection]:
        try:
            return index, inspect(self.manifest.path(index).name, self.manifest.read(index), self.manifest.pixels)
        except UnreadableImage as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        return index, Inspection(Finding.UNREADABLE, reason, 0, 0, 0, bytes(16), 0)


def check_images(manifest: Manifest, file: Path, display: Display, workers: int | None = None) -> Manifest:
    """Read what is not known yet, and keep it in a file; when it is stopped, what was read is kept.

    Args:
        manifest: What was listed.
        file: Where it is kept; where that cannot be, a warning says so and nothing is lost but time.
        display: For the progress.
        workers: Processes that read; None takes as many as there are cores.
    """
    todo = np.flatnonzero(~manifest.inspected)
    if not len(todo):
        return manifest
    workers = usable_cores() if workers is None else workers
    columns = {name: getattr(manifest, name).copy() for name in FOUND}
    reasons = {reason: number for number, reason in enumerate(manifest.reasons)}
    loader = DataLoader(
        _Files(manifest),
        sampler=todo.tolist(),
        batch_size=BATCH,
        num_workers=workers if len(todo) > FEW else 0,
        collate_fn=list,
        worker_init_fn=leave_signals,
        generator=torch.Generator(),  # or each pass takes a number from the global state, and a first run differs
    )

    def save() -> Manifest:
        found = replace(manifest, reasons=tuple(reasons), **columns)
        try:
            found.save(file)
        except (VitrailError, OSError) as error:
            display.warn(f"{error}; the images will be looked at again next time")
        return found

    display.begin("look at images", len(todo))
    saved = time.monotonic()
    try:
        for batch in until_lost(loader.__iter__, loader.num_workers):
            for index, found in batch:
                columns["inspected"][index] = True
                columns["findings"][index] = found.findings
                columns["reason"][index] = reasons.setdefault(found.reason, len(reasons)) if found.reason else -1
                columns["format"][index] = found.format
                columns["width"][index], columns["height"][index] = found.width, found.height
                columns["content"][index] = np.frombuffer(found.content, np.uint64)
                columns["picture"][index] = found.picture
            display.advance(len(batch))
            if time.monotonic() - saved > SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    finally:
        display.end()
        manifest = save()
    return manifest
