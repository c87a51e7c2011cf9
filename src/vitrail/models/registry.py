"""Models by name: list, find and build them. To add a family, write its file and name it in FAMILIES."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vitrail.errors import ConfigError, format_choices, shorten, suggest
from vitrail.models import t2t_vit, tnt, twins
from vitrail.models.family import Family, ModelConfig, Variant, VisionModel

FAMILIES: tuple[Family[Any], ...] = (tnt.FAMILY, t2t_vit.FAMILY, twins.FAMILY)


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a shell pattern such as `*svt*`."""
    names: list[str] = []
    for family in FAMILIES:
        names += fnmatch.filter(family.variants, pattern)
    return names


def canonical_name(name: str) -> str:
    """Return our name of a model; a name that another project uses is answered with a warning that gives ours.

    Raises:
        ConfigError: No model is called so; the message has the closest name.
    """
    for family in FAMILIES:
        if name in family.variants:
            return name
        if name in family.aliases:
            # past the check of arguments, to whoever calls vitrail.create_model
            warnings.warn(f"model {name!r} is called {family.aliases[name]!r} here", stacklevel=4)
            return family.aliases[name]
    known = list_models()
    for family in FAMILIES:
        known += family.aliases
    raise ConfigError(
        f"unknown model {name!r}{suggest(name, known) or ';'} `vitrail models` shows all "
        f"{len(list_models())}"
    )


def find_variant(name: str) -> tuple[Family[Any], Variant[Any]]:
    """Return the family and the facts of a model, by any of its names."""
    name = canonical_name(name)
    family = find_family(name)
    assert family is not None  # as the name is canonical
    return family, family.variants[name]


def find_family(name: str) -> Family[Any] | None:
    """Return the family of a model by our name of it; None where no model is called so."""
    for family in FAMILIES:
        if name in family.variants:
            return family
    return None


def build_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a named model with some of its fields changed.

    Raises:
        ConfigError: An unknown name or field, or a value that the architecture does not allow.
    """
    _, variant = find_variant(name)
    known = [field.name for field in fields(variant.config)]
    for key in overrides:
        if key not in known:
            raise ConfigError(
                f"{name} has no setting {key!r}{format_choices(key, known, 'it has')}"
            )
    try:
        return replace(variant.config, **overrides)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    except TypeError as error:
        if problem := _find_wrong_type(variant.config, overrides):
            raise ConfigError(f"{name}: {problem}") from error
        raise


def _find_wrong_type(published: ModelConfig, overrides: Mapping[str, Any]) -> str:
    """Say as a clause which of several fields is of a type that no configuration has; empty where none alone is."""
    for key, value in overrides.items():
        try:
            replace(published, **{key: value})
        except TypeError:
            return f"{key} is {shorten(value)}; it must be like {getattr(published, key)!r}"
        except ValueError:
            continue
    return ""


def create_model(name: str, **overrides: Any) -> VisionModel:
    """Build a freshly initialised model.

    Args:
        name: A name of `list_models`, or one that another project uses for the same model.
        overrides: Fields of the family's configuration, such as `num_classes`, `image_size`
            (pixels, or height and width), `in_channels`, `drop_path_rate` and `drop_rate`.

    Raises:
        ConfigError: An unknown name or field, or a value that the architecture does not allow.
    """
    name = canonical_name(name)
    family, _ = find_variant(name)
    return family.model(build_config(name, **overrides))
