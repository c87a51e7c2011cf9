"""A family that is added as CONTRIBUTING.md says touches its own file and FAMILIES, and everything works with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import deit
import pytest
import test_contract as contract

CONFIG = replace(deit.FAMILY.variants["deit_tiny_patch16_224"].config, **deit.FAMILY.tiny)


@pytest.mark.parametrize("check", [*contract.OF_AN_ADDED_FAMILY, contract.test_exported_program_runs_at_any_batch])
def test_contract_covers_it(check: Callable[..., Any]) -> None:
    check(deit.FAMILY, CONFIG)


@pytest.mark.parametrize("name", deit.FAMILY.variants)
@pytest.mark.usefixtures("without_shape_checks")
def test_card_is_checked(name: str) -> None:
    contract.test_parameter_counts_and_multiply_adds_equal_the_card(deit.FAMILY, deit.FAMILY.variants[name])


@pytest.mark.thorough
def test_everything_works_with_it() -> None:
    script = Path(__file__).parent / "with_deit.py"
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"exported": "tiny.mindir"}\n'
