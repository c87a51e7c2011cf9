"""Outputs and gradients under formula weights equal those measured from the official code.

Weights come from a formula over (name, index) instead of a random generator, so the numbers survive versions and
platforms. tests/golden/models.json holds enough of them to run anywhere; the full set lies beside the repository.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from support.golden import COMMITTED, check_norms, golden_images, golden_model, run

SHARED = Path(__file__).parents[3] / "shared" / "golden"
FULL = {path.stem: path for room in ("models", "pyramid") for path in sorted((SHARED / room).glob("*.json"))}


@pytest.mark.parametrize("name", COMMITTED["models"])
def test_numbers_of_the_official_code_are_reproduced(name: str) -> None:
    expected = COMMITTED["models"][name]
    model = golden_model(name)
    names = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    assert zlib.crc32("\n".join(names).encode()) == expected["state_dict"]
    logits, features, loss, norms = run(model)
    assert_close(logits[:, :16], torch.tensor(expected["logits"]), atol=2e-5, rtol=0)
    assert_close(features[:, :16], torch.tensor(expected["features"]), atol=2e-5, rtol=0)
    assert math.isclose(loss, expected["loss"], abs_tol=1e-5)
    check_norms(norms, expected["grad_norms"])


@pytest.mark.thorough
@pytest.mark.skipif(not FULL, reason="../shared/golden is absent; its excerpt in tests/golden is tested above")
@pytest.mark.parametrize("name", FULL)
def test_every_golden_number_is_reproduced(name: str) -> None:
    expected: dict[str, Any] = json.loads(FULL[name].read_text())
    arrays = np.load(FULL[name].with_suffix(".npz"))
    model = golden_model(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["keys"]
    logits, features, loss, norms = run(model)
    assert_close(logits, torch.from_numpy(arrays["logits"]), atol=2e-5, rtol=0)
    assert_close(features, torch.from_numpy(arrays["features"]), atol=2e-5, rtol=0)
    assert math.isclose(loss, expected["loss"], abs_tol=1e-5)
    assert set(norms) == set(expected["grad_norm"])
    check_norms(norms, expected["grad_norm"])


def test_the_formula_is_the_published_one() -> None:
    # of image(2, 3, 224, 224), so that a change of the formula is told from a change of a model
    assert_close(golden_images(224, 224).flatten()[:4], torch.tensor(COMMITTED["image"]), atol=1e-7, rtol=0)
