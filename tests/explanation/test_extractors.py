"""timm's AttentionExtract and torchvision's create_feature_extractor work on our models, as docs/explain.md says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.explained_models import NAMES
from support.forked import python

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = python("-m", "support.extractors", *NAMES, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_attention_is_extracted_by_the_names_of_its_modules(seen: dict[str, dict[str, Any]], name: str) -> None:
    found = seen[name]
    assert found["attention"]
    assert found["attention_differs_by"] < 1e-5
    performers = [f"tokens_to_token.attention{n}.softmax" for n in (1, 2)]
    assert found["missing"] == (performers if name == "t2t_vit_7" else [])


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_features_are_extracted_and_the_model_answers_on(seen: dict[str, dict[str, Any]], name: str) -> None:
    found = seen[name]
    assert found["level_differs_by"] < 1e-5
    assert found["logits_differ_by"] < 1e-5
    assert found["is_logits_as_before"]
    assert found["nodes_of_training"] > 0
