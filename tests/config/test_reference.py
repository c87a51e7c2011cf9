"""The reference of all settings: every one has a type, a default and a text that stands alone."""

import re
import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
import yaml

from support.settings import SECTIONS
from vitrail.config.commands import EvaluateConfig, PredictConfig, TrainConfig
from vitrail.config.reference import describe_section
from vitrail.config.resolve import to_dict
from vitrail.config.sections import ModelSection, PreprocessSection
from vitrail.config.training_sections import (
    OptimSection,
    OutputSection,
    TrainSection,
)

RIDDLES = re.compile(r"(Of|The same|Likewise|As|What it)\b")
"""Beginnings of a text that leave open what it is about."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_text_that_stands_alone(section: type) -> None:
    described = describe_section(section)
    assert [key for key, *_ in described] == [field.name for field in fields(section)]
    for key, kind, default, doc in described:
        assert kind, key
        assert default, key
        assert "\n" not in kind + default + doc
        assert doc, f"{section.__name__}.{key} has no text"
        assert not RIDDLES.match(doc), f"{section.__name__}.{key}: {doc!r}"
        assert doc.endswith((".", "...")), f"{section.__name__}.{key}: {doc!r}"


def test_every_section_of_every_command_is_described() -> None:
    used = {kind for config in (TrainConfig, EvaluateConfig, PredictConfig) for kind in get_type_hints(config).values()}
    assert used == set(SECTIONS)


@pytest.mark.parametrize(
    ("section", "key", "kind", "default"),
    [
        (TrainSection, "epochs", "a whole number", "300"),
        (OptimSection, "lr", "a number", "0.001"),
        (OptimSection, "eps", "a number, or null", "1.0e-08"),
        (OptimSection, "betas", "a list of numbers, or null", "[0.9, 0.999]"),
        (OptimSection, "name", "one of adamw, sgd, lamb, lion, adan, muon", "adamw"),
        (OptimSection, "nesterov", "true or false", "false"),
        (OptimSection, "clip_norm", "a number, or null", "null"),
        (OutputSection, "root", "text", "runs"),
        (ModelSection, "image_size", "a whole number, or a list of 2 numbers, or null", "null"),
        (ModelSection, "options", "a mapping", "{}"),
        (PreprocessSection, "exif", "one of ignore, apply, or null", "null"),
    ],
)
def test_type_and_default_are_described_in_words(section: type, key: str, kind: str, default: str) -> None:
    assert {name: rest[:2] for name, *rest in describe_section(section)}[key] == [kind, default]


@pytest.mark.parametrize("section", SECTIONS)
def test_described_defaults_are_what_the_command_line_would_read(section: type) -> None:
    defaults = to_dict(section())
    assert {key: yaml.safe_load(default) for key, _, default, _ in describe_section(section)} == defaults


def test_a_docstring_is_the_description_of_the_field_above_it() -> None:
    docs = {key: doc for key, *_, doc in describe_section(OptimSection)}
    assert docs["momentum"] == "Momentum of sgd and muon; null takes 0.9 for sgd and 0.95 for muon."
    assert docs["lr_base_batch"].startswith("Batch size that `lr` is meant for: ")


def test_config_imports_no_torch() -> None:
    modules = "vitrail.config.reference, vitrail.config.recipes"
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)
