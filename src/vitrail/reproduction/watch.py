"""A display that passes everything on, and warns after each epoch that a run falls below its band."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.display import Display
from vitrail.reproduction.curves import Band


class Watch:
    """Progress of a run that is expected within a band.

    Args:
        display: Where progress is shown.
        band: What the run is expected to reach.
    """

    def __init__(self, display: Display, band: Band) -> None:
        self.display = display
        self.band = band

    def row(self, values: Mapping[str, Any]) -> None:
        """Show the numbers of an epoch, and warn where they are below the band."""
        self.display.row(values)
        epoch, top1 = values["epoch"], values.get("val_top1")
        # epoch 0 has the initial weights, where these are evaluated too
        if top1 is None or epoch == 0 or self.band.place(epoch, top1) != "below":
            return
        self.display.warn(
            f"epoch {epoch}: top-1 of {top1:.2f} % is below the band of {self.band.recipe}, "
            f"{self.band.describe(epoch)} ({self.band.seeds} seeds have "
            f"{self.band.mean[epoch - 1]:.2f} % on average); training goes on, but something "
            "differs here: the images, the device, its precision, or the code"
        )

    def note(self, text: str) -> None:
        self.display.note(text)

    def warn(self, text: str) -> None:
        self.display.warn(text)

    def begin(self, label: str, total: int | None, done: int = 0) -> None:
        self.display.begin(label, total, done)

    def advance(self, steps: int = 1, **values: str) -> None:
        self.display.advance(steps, **values)

    def end(self) -> None:
        self.display.end()

    def keep(self, path: Path) -> None:
        self.display.keep(path)
