"""Fields of a model's configuration by what they change: shapes of weights, output alone, or training alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vitrail.models.family import ModelConfig

ADAPTABLE = ("image_size", "in_channels", "num_classes")
"""Fields that may differ from the published model's without making it another one: weights are
adapted to them."""
NUMERICS = ("gelu", "norm_eps", "final_norm_eps", "embed_norm_eps")
"""Fields that change a model's output but no weight's shape."""
RATES = ("drop_path_rate", "drop_rate")
"""Fields that matter in training only."""
TAKEN = ("dynamic_image_size",)
"""Fields that say which images a model takes, and change neither its weights nor, at the size that it
was built for, its output."""


def pick_numerics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some fields that change a model's output but no weight's shape."""
    return {name: value for name, value in values.items() if name in NUMERICS}


def read_numerics(config: ModelConfig, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields that change a model's output but no weight's shape, with some of them changed."""
    values = {**asdict(config), **(changes or {})}
    numerics = pick_numerics(values)
    if numerics.get("final_norm_eps", 0) is None:
        numerics["final_norm_eps"] = numerics["norm_eps"]
    return numerics


def find_differences(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values of fields that a configuration has otherwise."""
    return {name: value for name, value in values.items() if getattr(config, name) != value}


def write_options(options: Mapping[str, Any]) -> list[str]:
    """Return fields of a configuration as settings that are typed, such as weights.options.depths=[2,8,4,2]."""
    settings = []
    for name, value in options.items():
        text = str(list(value)) if isinstance(value, tuple) else str(value)
        settings.append(f"weights.options.{name}={text.replace(' ', '')}")
    return settings


def read_architecture(config: ModelConfig) -> dict[str, Any]:
    """Return the fields that shapes follow from, and that no adaptation can change."""
    others = (*ADAPTABLE, *NUMERICS, *RATES, *TAKEN)
    return {name: value for name, value in asdict(config).items() if name not in others}
