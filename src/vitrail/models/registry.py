"""Models by name: list, find and build them. A family is named in FAMILIES, or added by `register_family`."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.errors import ConfigError, format_choices, shorten, suggest
from vitrail.models import pyramid_tnt, t2t_vit, timm_model, tnt, twins
from vitrail.models.added_family import find_fault
from vitrail.models.family import (
    Family,
    Library,
    ModelConfig,
    TransformerConfig,
    Variant,
    VisionModel,
)

FAMILIES: list[Family[Any]] = [
    tnt.FAMILY,
    t2t_vit.FAMILY,
    twins.FAMILY,
    pyramid_tnt.FAMILY,
]
"""Our own families, and those that were added since."""
OWN = tuple(family.name for family in FAMILIES)
"""Names of the families that this package brings, which no other takes the place of."""
LIBRARIES: tuple[Library, ...] = (timm_model.LIBRARY,)
"""Other packages whose models have names here too, behind a prefix. They are listed where a pattern
begins with that prefix, and looked up by whole names only."""


def register_family(family: Family[Any]) -> None:
    """Add a family of models of your own, which every function then knows by the names of its models.

    It is added to this process: a program of yours that adds it and then calls `vitrail.train`, or
    the command line's `main`, does so in each of its processes. A family that was added under the
    same name before is replaced, so that a notebook's cell can be run again.

    Args:
        family: What the toolkit needs to know about the architecture.

    Raises:
        ConfigError: One of its names is that of another family or of its models, or something is
            wrong with what it says.
    """
    if family.name in OWN:
        raise ConfigError(
            f"register_family: {family.name} is a family of vitrail itself; name yours differently"
        )
    if fault := find_fault(family, tuple(library.prefix for library in LIBRARIES)):
        raise ConfigError(f"register_family: {fault}")
    others = [other for other in FAMILIES if other.name != family.name]
    for name in (*family.variants, *family.aliases):
        for other in others:
            if name in other.variants or name in other.aliases:
                raise ConfigError(
                    f"register_family: {name} is a model of {other.title}; name yours differently"
                )
    FAMILIES[:] = [*others, family]


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a shell pattern such as `*svt*`; `timm:*` has those of timm."""
    library = find_library(pattern)
    if library is not None:
        return fnmatch.filter(library.list_names(), pattern)
    names: list[str] = []
    for family in FAMILIES:
        names += fnmatch.filter(family.variants, pattern)
    return names


def canonical_name(name: str) -> str:
    """Return our name of a model; a name that another project uses is answered with a warning that gives ours.

    Raises:
        ConfigError: No model is called so; the message has the closest name.
    """
    library = find_library(name)
    if library is not None:
        if library.find(name) is None:
            raise ConfigError(
                f"unknown model {name!r}{suggest(name, library.list_names()) or ';'} "
                f"`vitrail models '{library.prefix}*'` lists them"
            )
        return name
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
    near = suggest(name, known)
    for library in LIBRARIES:
        theirs = f"{library.prefix}{name}"
        if library.find(theirs) is not None:
            near = f"; did you mean {theirs!r}?"
    raise ConfigError(
        f"unknown model {name!r}{near or ';'} `vitrail models` shows all {len(list_models())}"
    )


def kernels_of(name: str) -> tuple[str, ...]:
    """Return the operators of a model that have a faster body than PyTorch's layers."""
    return find_variant(name)[0].kernels


def find_variant(name: str) -> tuple[Family[Any], Variant[Any]]:
    """Return the family and the facts of a model, by any of its names."""
    name = canonical_name(name)
    family = find_family(name)
    assert family is not None  # as the name is canonical
    return family, family.variants[name]


def find_family(name: str) -> Family[Any] | None:
    """Return the family of a model by our name of it; None where no model is called so."""
    library = find_library(name)
    if library is not None:
        return library.find(name)
    for family in FAMILIES:
        if name in family.variants:
            return family
    return None


def is_model(name: str) -> bool:
    """Say whether a model has exactly this name here."""
    return find_family(name) is not None


def find_library(name: str) -> Library | None:
    """Return the library whose prefix a name or pattern begins with; None where that is no library's."""
    for library in LIBRARIES:
        if name.startswith(library.prefix):
            return library
    return None


def build_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a named model with some of its fields changed.

    Raises:
        ConfigError: An unknown name or field, or a value that the architecture does not allow.
    """
    _, variant = find_variant(name)
    for key in overrides:
        if not variant.config.has_option(key):
            known = [field.name for field in fields(variant.config)]
            raise ConfigError(
                f"{name} has no setting {key!r}{format_choices(key, known, 'it has')}"
            )
    if overrides.get("dynamic_image_size") and not _takes_any_size(variant.config):
        raise ConfigError(f"{name} takes images of its image_size alone, not dynamic_image_size")
    try:
        return variant.config.with_options(**overrides)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    except TypeError as error:
        if problem := _find_wrong_type(variant.config, overrides):
            raise ConfigError(f"{name}: {problem}") from error
        raise


def _takes_any_size(config: ModelConfig) -> bool:
    """Say whether a family tells what the sides of images are padded to, without which it takes none of other sizes."""
    return (
        not isinstance(config, TransformerConfig)
        or type(config).multiple is not TransformerConfig.multiple
    )


def _find_wrong_type(published: ModelConfig, overrides: Mapping[str, Any]) -> str:
    """Say as a clause which of several fields is of a type that no configuration has; empty where none alone is."""
    for key, value in overrides.items():
        try:
            published.with_options(**{key: value})
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
