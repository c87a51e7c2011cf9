"""A data set whose classes have fewer and fewer images, and every setting that answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ALL = (
    "balance.sampler=sqrt",
    "balance.class_weights=effective",
    "balance.effective_beta=0.9",
    "balance.logit_adjust=1",
)


def long_tailed(root: Path, counts: Sequence[int], validated: int = 8) -> Path:
    """Write plain gray images; the gray of a class varies more than it differs from the next class's."""
    generator = np.random.default_rng(0)
    for split, numbers in (("train", counts), ("val", [validated] * len(counts))):
        for label, count in enumerate(numbers):
            folder = root / split / "abcdef"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                gray = round(np.clip(generator.normal(80 + 50 * label, 25), 0, 255))
                Image.fromarray(np.full((32, 32), gray, dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return root
