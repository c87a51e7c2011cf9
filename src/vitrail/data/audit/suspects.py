"""Labels that look wrong: images whose class another one seems likelier than, as a table and as a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from vitrail.cells import write_rows
from vitrail.data.manifest import Manifest

COLUMNS = ("path", "class", "likelier", "loss")
"""Columns of the file, a row an image, the most suspect first."""
SHOWN = 24
"""Images that the page shows, at most."""


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong."""

    index: int
    """Index of the image in the manifest."""
    likelier: int
    """The class that seems likelier."""
    loss: float
    """Cross-entropy of its label, by a layer that was fitted without it: 0 where that is sure of
    the label."""


def write_suspects(manifest: Manifest, suspects: Sequence[Suspect]) -> bytes:
    """Return the file of suspects, whose cells no spreadsheet takes for formulas."""
    stream = io.StringIO(newline="")
    write_rows(stream, [COLUMNS], guarded=False)
    rows = []
    for one in suspects:
        label, likelier = manifest.label_name(one.index), manifest.classes[one.likelier]
        rows.append((manifest.name(one.index), label, likelier, f"{one.loss:.4f}"))
    write_rows(stream, rows, guarded=True)
    return stream.getvalue().encode()
