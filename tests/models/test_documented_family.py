"""The family that docs/adding_a_family.md adds is what that page says of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_contract as contract
import timm
import torch

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_family.md"
NAME = "mixer_b16_224"


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    path = tmp_path_factory.mktemp("family") / "documented_mixer.py"
    path.write_text(code[1])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the module of a class
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


@pytest.mark.parametrize("check", contract.OF_AN_ADDED_FAMILY)
def test_contract_covers_it(mixer: ModuleType, check: Callable[..., Any]) -> None:
    check(mixer.FAMILY, replace(mixer.FAMILY.variants[NAME].config, **mixer.FAMILY.tiny))


@pytest.mark.usefixtures("without_shape_checks")
def test_its_card_is_right(mixer: ModuleType) -> None:
    contract.test_parameter_counts_and_multiply_adds_equal_the_card(mixer.FAMILY, mixer.FAMILY.variants[NAME])


def test_it_computes_what_timm_does_with_the_same_weights(mixer: ModuleType) -> None:
    # its MLPs over patches are a fraction of the channels, whatever the image size
    theirs = timm.models.MlpMixer(img_size=64, embed_dim=64, num_blocks=2, num_classes=7).eval()
    card = mixer.FAMILY.variants[NAME].config
    config = replace(card, image_size=64, embed_dim=64, depth=2, token_dim=32, channel_dim=256, num_classes=7)
    ours = mixer.Mixer(config).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_change_of_the_registry_fits_it() -> None:
    registry = (PAGE.parents[1] / "src" / "vitrail" / "models" / "registry.py").read_text()
    diff = re.search(r"^```diff\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert diff is not None
    for line in diff[1].splitlines():
        if line[:1] in ("-", " "):
            assert line[1:] in registry.splitlines(), line
