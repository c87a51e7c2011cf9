"""Recognise whose names a file uses, and which model its weights are of: by names and shapes, never by a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError, format_choices, list_values
from vitrail.models.dialects import SAME, Dialect, Link, is_counter, may_lack, read_names
from vitrail.models.family import Family, ModelConfig, Shapes, Variant
from vitrail.models.registry import FAMILIES, build_config, find_variant
from vitrail.weights.account import UNUSED
from vitrail.weights.config_fields import ADAPTABLE, find_differences, write_options


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to understand a file."""

    dialect: Dialect
    model: str
    """Name of the model."""
    family: Family[Any]
    variant: Variant[Any]
    """The published model of that name."""
    config: ModelConfig
    """Configuration of the model, with the sizes that the file's shapes tell."""
    links: tuple[Link, ...]
    """Weights of the model that the file holds."""
    zeros: tuple[str, ...]
    """Weights that the project does not have, and that are zeros."""
    missing: tuple[str, ...]
    """Weights that the file lacks."""
    skipped: Mapping[str, str]
    """Names in the file of what is no weight of the model, and why."""
    misfits: tuple[str, ...]
    """Names in the file of weights that the model does not have, or has in another shape."""

    @property
    def is_whole(self) -> bool:
        """Whether every weight of the file and of the model is accounted for."""
        return self.distance == 0

    @property
    def distance(self) -> int:
        """How many weights, of the file and of the model, are not accounted for."""
        return len(self.missing) + len(self.misfits)

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names of the model: ours, and those that other projects use."""
        aliases = self.family.aliases.items()
        return (self.model, *(alias for alias, name in aliases if name == self.model))

    def __str__(self) -> str:
        return f"{self.dialect.name} {self.model}"


@dataclass(frozen=True, kw_only=True)
class _Names:
    """A file's names as one dialect reads them."""

    dialect: Dialect
    family: Family[Any]
    links: list[Link]
    skipped: Mapping[str, str]
    rest: list[str]
    """Names that the dialect does not use."""
    shapes: Shapes
    """Shapes of the weights by official names."""


def recognise(
    weights: Mapping[str, Tensor],
    where: str,
    *,
    dialect: str | None,
    model: str | None,
    options: Mapping[str, Any],
) -> list[Reading]:
    """Return the ways to understand a file: all that account for every weight, or else the nearest one.

    A file that no dialect names is read by its order and shapes, where its family knows how.

    Args:
        weights: By the names in the file, without those of wrappers.
        where: The file, for messages.
        dialect: Name of the project, where it is known.
        model: Name of the model, where it is known.
        options: Fields of the model's configuration that differ from the published one.

    Raises:
        CheckpointError: No way is near.
        ConfigError: No model is called so, or it has no such option.
    """
    readings = failure = None
    try:
        readings = _recognise_by_name(weights, where, dialect=dialect, model=model, options=options)
    except CheckpointError as error:
        failure = error
    if readings is not None and readings[0].is_whole:
        return readings
    for family in _candidate_families(model):
        if family.by_order and (names := family.by_order(weights)):
            in_order = {new: weights[old] for old, new in names.items()}
            nearest, *_ = _recognise_by_name(
                in_order, where, dialect=dialect, model=model, options=options
            )
            if nearest.is_whole:
                return [_restore_names(nearest, {new: old for old, new in names.items()})]
    if readings is None:
        assert failure is not None
        raise failure
    return readings


def translate(weights: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """Return a file's weights under official names, in float32; those that the file lacks are left out."""
    expected = expected_shapes(reading.family, reading.config)
    translated: dict[str, Tensor] = {}
    for link in reading.links:
        tensors = link.how.read([_widen(weights[name]) for name in link.theirs])
        translated |= zip(link.ours, tensors, strict=True)
    for name in reading.zeros:
        kind = torch.int64 if is_counter(name) else torch.float32
        translated[name] = torch.zeros(expected[name], dtype=kind)
    return {name: translated[name] for name in expected if name in translated}


def _widen(tensor: Tensor) -> Tensor:
    """Return numbers of any precision in float32, and whole numbers as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def expected_shapes(family: Family[Any], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a model, in the official order."""
    with torch.device("meta"):
        state = family.model(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def list_projects() -> tuple[str, ...]:
    """Return all projects whose names for weights are known."""
    return tuple(dict.fromkeys(chain.from_iterable(family.projects for family in FAMILIES)))


def _candidate_families(model: str | None) -> list[Family[Any]]:
    return [find_variant(model)[0]] if model else list(FAMILIES)


def _restore_names(reading: Reading, names: Mapping[str, str]) -> Reading:
    """Return a reading by order with the names that stand in the file, and a note that says so."""
    links = []
    for link in reading.links:
        theirs = tuple(names[name] for name in link.theirs)
        links.append(replace(link, theirs=theirs))
    notes = (
        *reading.dialect.notes,
        "its blocks were told apart by order and shape, not by their names",
    )
    return replace(reading, links=tuple(links), dialect=replace(reading.dialect, notes=notes))


def _recognise_by_name(
    weights: Mapping[str, Tensor],
    where: str,
    *,
    dialect: str | None,
    model: str | None,
    options: Mapping[str, Any],
) -> list[Reading]:
    families = _candidate_families(model)
    _check_dialect(dialect, families, where)
    readings: list[Reading] = []
    told: dict[str, Any] = {}  # by the shapes, for the message where no model has them
    for family in families:
        for candidate in family.dialects:
            if dialect and dialect not in candidate.projects:
                continue
            names = _read_names(weights, candidate, family)
            try:
                implied = family.implied(names.shapes)
            except (KeyError, IndexError, ZeroDivisionError):
                continue  # not even the weights that tell its size
            told = told or implied
            for name in [model] if model else family.variants:
                if model is None and name in candidate.lacks:
                    continue
                reading = _read_as(names, name, implied, options, is_named=model is not None)
                if reading is not None:
                    readings.append(reading)
    if not readings:
        raise _refuse(weights, where, dialect, told)
    # where some account for every weight, these are the nearest
    nearest = min(reading.distance for reading in readings)
    return _drop_synonyms([reading for reading in readings if reading.distance == nearest])


def _check_dialect(dialect: str | None, families: list[Family[Any]], where: str) -> None:
    if not dialect:
        return
    if dialect not in (known := list_projects()):
        raise ConfigError(
            f"dialect is {dialect!r}{format_choices(dialect, (*known, 'vitrail'), 'known are')}"
        )
    if not any(dialect in family.projects for family in families):
        raise CheckpointError(
            f"{where}: {dialect} has no {families[0].title}; leave weights.dialect out"
        )


def _refuse(
    weights: Mapping[str, Tensor], where: str, dialect: str | None, told: Mapping[str, Any]
) -> CheckpointError:
    """Return why weights are those of no model: an image that is not square, an unpublished size, or other names."""
    positions = told.get("positions", 1)
    if positions != math.isqrt(positions) ** 2:
        return CheckpointError(
            f"{where}: has a table of {positions} positions, which is no square; say the image "
            "size, height and width: weights.options.image_size=[H,W]"
        )
    if told:
        sizes = dict(told)
        sizes.pop("positions", None)
        others = ("num_classes", "in_channels")
        options = {name: value for name, value in sizes.items() if name not in others}
        return CheckpointError(
            f"{where}: has the shapes of no published model ({list_values(sizes)}); name the one "
            f"it was made from, and its options: weights.model=NAME {' '.join(write_options(options))} ..."
        )
    example = ", ".join(list(weights)[:3])
    whose = f"{dialect} names; leave weights.dialect out" if dialect else "any dialect here names"
    *titles, last = (family.title for family in FAMILIES)
    return CheckpointError(
        f"{where}: holds weights ({example}, ...) of no {', '.join(titles)} or {last} that {whose}"
    )


def _read_names(weights: Mapping[str, Tensor], dialect: Dialect, family: Family[Any]) -> _Names:
    links, skipped, rest = read_names(weights, dialect)
    shapes = _official_shapes(weights, links)
    return _Names(
        dialect=dialect, family=family, links=links, skipped=skipped, rest=rest, shapes=shapes
    )


def _official_shapes(
    weights: Mapping[str, Tensor], links: list[Link]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the weights have under official names, without copying any."""
    shapes: dict[str, tuple[int, ...]] = {}
    for link in links:
        if link.how is SAME:
            shapes[link.ours[0]] = tuple(weights[link.theirs[0]].shape)
            continue
        try:
            tensors = link.how.read([weights[name].to("meta") for name in link.theirs])
        except (RuntimeError, IndexError):  # of other dimensions than the project's
            tensors = [weights[link.theirs[0]].to("meta")] * len(link.ours)
        for name, tensor in zip(link.ours, tensors, strict=True):
            shapes[name] = tuple(tensor.shape)
    return shapes


def _read_as(
    names: _Names,
    model: str,
    implied: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    is_named: bool,
) -> Reading | None:
    """Return how far a file's weights are those of a model, or None where they are of another.

    Args:
        names: The file's names as a dialect reads them.
        model: Name of the model.
        implied: Fields of its configuration that the shapes tell.
        options: Fields that differ from the published model.
        is_named: Whether the user has named the model, so that it may differ from the published one
            in size.
    """
    config = _implied_config(names, model, implied, options, is_named=is_named)
    if config is None:
        return None
    family = names.family
    expected = expected_shapes(family, config)
    unused = {*family.unread} - expected.keys()
    fitting, dead, misfits = [], [], [*names.rest]
    for link in names.links:
        if {*link.ours} <= unused:
            dead += link.theirs
        elif all(expected.get(name) == names.shapes[name] for name in link.ours):
            fitting.append(link)
        else:
            misfits += link.theirs
    held = set(chain.from_iterable(link.ours for link in fitting))
    zeros, missing = [], []
    for name in expected:
        if name not in held:
            (zeros if may_lack(name, names.dialect) else missing).append(name)
    return Reading(
        dialect=names.dialect,
        model=model,
        family=family,
        variant=family.variants[model],
        config=config,
        links=tuple(fitting),
        zeros=tuple(zeros),
        missing=tuple(missing),
        skipped={**names.skipped, **dict.fromkeys(dead, UNUSED)},
        misfits=tuple(misfits),
    )


def _implied_config(
    names: _Names,
    model: str,
    implied: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    is_named: bool,
) -> ModelConfig | None:
    """Return the configuration that the file's shapes give a model, or None where it is another model."""
    asked, given = dict(options), {}
    for key in ("in_channels", "num_classes"):
        asked.pop(key, None)
        if key in implied:
            given[key] = implied[key]
    config = build_config(model, **asked)
    sizes = vars(config).keys() & implied.keys() - {*ADAPTABLE}
    if not is_named and find_differences(config, {key: implied[key] for key in sizes}):
        return None
    # a state dict of ours without what a family can add has official names all the same
    if find_differences(config, names.dialect.only).keys() - names.family.additions.keys():
        return None
    if "positions" in implied:
        size = _image_size_of(implied["positions"], config)
        if size is None:
            return None
        given["image_size"] = size
    # what is asked for stands before what the dialect's programs compute with
    for key in names.dialect.options.keys() - options.keys():
        given[key] = names.dialect.options[key]
    try:
        return replace(config, **given)
    except ValueError:
        return None


def _image_size_of(positions: int, config: Any) -> int | tuple[int, int] | None:
    """Return the image size that a table of positions was made for: the one asked for, or else a square."""
    if config.grid[0] * config.grid[1] == positions:
        return config.image_size
    side, patch = math.isqrt(positions), config.size[0] // config.grid[0]
    return side * patch if side * side == positions else None


def _drop_synonyms(readings: list[Reading]) -> list[Reading]:
    """Leave out what is read the same way under another name: the same configuration from the same weights."""
    kept: list[Reading] = []
    # the name of the model that needed the fewest options
    for reading in sorted(readings, key=_count_changes):
        if not any(
            other.config == reading.config and other.links == reading.links for other in kept
        ):
            kept.append(reading)
    return kept


def _count_changes(reading: Reading) -> int:
    """Return in how many fields, other than those that weights are adapted to, a reading differs from its variant."""
    changes = find_differences(reading.variant.config, vars(reading.config))
    return len(changes.keys() - {*ADAPTABLE})
