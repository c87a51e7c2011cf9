"""Values of the MindSpore checkpoints in tests/golden and beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from support.formula import golden_weight

GOLDEN = Path(__file__).parents[1] / "golden"

COMMITTED = json.loads((GOLDEN / "mindspore.json").read_text())

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "mindspore"


def golden_values(kind: str) -> dict[str, Tensor]:
    """Return the tensors of the file that MindSpore wrote, in its order: the second block is like the first."""
    listed = COMMITTED["names"][kind]
    first = [entry for entry in listed if entry[0].startswith("blocks.0.")]
    at = listed.index(first[-1]) + 1
    second = [[name.replace("blocks.0.", "blocks.1."), shape] for name, shape in first]
    return {
        name: golden_weight(name.replace(".gamma", ".weight").replace(".beta", ".bias"), tuple(shape))
        for name, shape in [*listed[:at], *second, *listed[at:]]
    }
