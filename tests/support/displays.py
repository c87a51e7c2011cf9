"""A display that keeps what it was told."""

from __future__ import annotations

from vitrail.display import Quiet


class Notebook(Quiet):
    """A display that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)
