"""The picture of a confusion matrix, from 2 to 1,000 classes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitrail.evaluation.confusion import LARGEST_CELL, PAPER, SIDE, SMALLEST_CELL, SPECK, draw_confusion, shades


def test_a_single_image_is_seen_and_no_image_is_not() -> None:
    confusion = np.array([[10_000, 1, 0], [0, 0, 0], [0, 0, 5]])
    found = shades(confusion)
    assert found[0, 1] > 0.1
    assert found[2, 2] == 1
    assert not found[confusion == 0].any()


@pytest.mark.parametrize("k", [1, 2, 10, 100, 1000])
def test_the_matrix_has_every_cell_in_its_place(k: int) -> None:
    confusion = np.zeros((k, k), dtype=np.int64)
    confusion[0, k - 1] = 3  # the upper right corner alone
    with Image.open(io.BytesIO(draw_confusion(confusion, [f"class {number}" for number in range(k)]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    cell = min(max(SIDE // k, SMALLEST_CELL), LARGEST_CELL)
    assert max(pixels.shape) <= 2 * SIDE + 400
    reddish = (pixels[:, :, 0] - pixels[:, :, 2] > 100).nonzero() if k > 1 else (pixels[:, :, 2] > 300).nonzero()
    if k > 1:
        for places in reddish:
            assert places.max() - places.min() + 1 in range(cell - 2, max(cell, SPECK) + 1)
    assert (pixels[-1, -1] == PAPER).all()


def test_long_names_in_any_script_are_cut_and_drawn() -> None:
    names = ["x" * 300, "Gro\u00dfe Katze", "\u732b", ""]
    with Image.open(io.BytesIO(draw_confusion(np.eye(4, dtype=np.int64), names))) as image:
        assert max(image.size) < 1000
