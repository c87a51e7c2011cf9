"""Which project's names a file uses, and which model its weights are of: by names and shapes, never by a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError, among
from vitrail.models.dialects import SAME, Dialect, Link, may_lack, read_names
from vitrail.models.family import Family, ModelConfig, Shapes
from vitrail.models.registry import FAMILIES, build_config, find_variant

PROJECTS = tuple(dict.fromkeys(name for family in FAMILIES for dialect in family.dialects for name in dialect.projects))
"""All whose names are known."""
FREE = ("image_size", "in_channels", "num_classes")
"""What may differ from the published model without being another one."""
UNREAD = "nothing reads it"


@dataclass(frozen=True)
class Entry:
    """What became of some weights."""

    what: str
    """Loaded, renamed, joined, split, reshaped, resized, zero-filled, new or skipped."""
    theirs: tuple[str, ...] = ()
    """Their names in the file."""
    ours: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        sides = [" + ".join(side[:2]) for side in (self.theirs, self.ours) if side]
        return " -> ".join(dict.fromkeys(sides)) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to understand a file."""

    dialect: Dialect
    model: str
    config: ModelConfig
    """Of a model that all weights fit."""
    links: tuple[Link, ...]
    """What the file holds of the model."""
    zeros: tuple[str, ...]
    """Weights that the project does not have, and that are zeros."""
    missing: tuple[str, ...]
    """Weights that the file lacks."""
    skipped: Mapping[str, str]
    """What of the file is no weight of the model, and why."""
    misfits: tuple[str, ...]
    """Names in the file of weights that the model does not have, or has in another shape."""

    @property
    def is_whole(self) -> bool:
        """Whether every weight of the file and of the model is accounted for."""
        return not self.missing and not self.misfits

    def __str__(self) -> str:
        return f"{self.dialect.name} {self.model}"


def recognise(
    weights: Mapping[str, Tensor], where: str, *, dialect: str | None, model: str | None, options: Mapping[str, Any]
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
        readings = _recognise(weights, where, dialect=dialect, model=model, options=options)
    except CheckpointError as error:
        failure = error
    if readings is None or not readings[0].is_whole:
        for family in _families(model):
            if family.by_order and (names := family.by_order(weights)):
                in_order = {new: weights[old] for old, new in names.items()}
                (again, *_) = _recognise(in_order, where, dialect=dialect, model=model, options=options)
                if again.is_whole:
                    return [_in_order(again, {new: old for old, new in names.items()})]
    if readings is None:
        assert failure is not None
        raise failure
    return readings


def _families(model: str | None) -> list[Family[Any]]:
    return [find_variant(model)[0]] if model else list(FAMILIES)


def _in_order(reading: Reading, names: Mapping[str, str]) -> Reading:
    """Return a reading with the names that stand in the file, and a word on it."""
    links = tuple(replace(link, theirs=tuple(names[name] for name in link.theirs)) for link in reading.links)
    notes = (*reading.dialect.notes, "its blocks were told apart by order and shape, not by their names")
    return replace(reading, links=links, dialect=replace(reading.dialect, notes=notes))


def _recognise(
    weights: Mapping[str, Tensor], where: str, *, dialect: str | None, model: str | None, options: Mapping[str, Any]
) -> list[Reading]:
    families = _families(model)
    if dialect and dialect not in PROJECTS:
        raise ConfigError(f"dialect is {dialect!r}{among(dialect, (*PROJECTS, 'vitrail'), 'known are')}")
    if dialect and not any(dialect in d.projects for family in families for d in family.dialects):
        raise CheckpointError(f"{where}: {dialect} has no {families[0].title}; leave weights.dialect out")
    found: list[Reading] = []
    described: dict[str, Any] = {}
    for family in families:
        for candidate in family.dialects:
            if dialect and dialect not in candidate.projects:
                continue
            links, skipped, rest = read_names(weights, candidate)
            shapes = _shapes(weights, links)
            try:
                implied = family.implied(shapes)
            except (KeyError, IndexError, ZeroDivisionError):
                continue  # not even the weights that tell its size
            for name in [model] if model else [name for name in family.variants if name not in candidate.lacks]:
                if config := _config(candidate, name, implied, options, named=model is not None):
                    found.append(_compare(candidate, name, config, links, skipped, rest, shapes))
            described = described or implied
    if whole := [reading for reading in found if reading.is_whole]:
        return _distinct(whole)
    if found:
        far = [len(reading.missing) + len(reading.misfits) for reading in found]
        return _distinct([reading for reading, count in zip(found, far, strict=True) if count == min(far)])
    if described.get("positions", 1) != math.isqrt(described.get("positions", 1)) ** 2:
        raise CheckpointError(
            f"{where}: has a table of {described['positions']} positions, which is no square; say the image size, "
            "height and width: weights.options.image_size=[H,W]"
        )
    if described:
        size = ", ".join(f"{name} {value}" for name, value in described.items() if name != "positions")
        raise CheckpointError(
            f"{where}: has the shapes of no published model ({size}); name the one it was made from, and its options: "
            "weights.model=NAME weights.options.depth=N ..."
        )
    example = ", ".join(list(weights)[:3])
    whose = f"{dialect} names; leave weights.dialect out" if dialect else "any dialect here names"
    *titles, last = (family.title for family in FAMILIES)
    raise CheckpointError(f"{where}: holds weights ({example}, ...) of no {', '.join(titles)} or {last} that {whose}")


def translate(weights: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """Return a file's weights under official names, in float32; those that the file lacks are left out."""
    expected = expected_shapes(reading.model, reading.config)
    found: dict[str, Tensor] = {}
    for link in reading.links:
        made = link.how.read([weights[name].float() for name in link.theirs])
        found |= zip(link.ours, made, strict=True)
    found |= {name: torch.zeros(expected[name]) for name in reading.zeros}
    return {name: found[name] for name in expected if name in found}


def expected_shapes(model: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a model, in the official order."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in find_variant(model)[0].model(config).state_dict().items()}


def _shapes(weights: Mapping[str, Tensor], links: list[Link]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the weights have under official names, without copying any."""
    found: dict[str, tuple[int, ...]] = {}
    for link in links:
        if link.how is SAME:
            found[link.ours[0]] = tuple(weights[link.theirs[0]].shape)
            continue
        try:
            made = link.how.read([weights[name].to("meta") for name in link.theirs])
        except (RuntimeError, IndexError):  # of other dimensions than the project's
            made = [weights[link.theirs[0]].to("meta")] * len(link.ours)
        found |= {name: tuple(tensor.shape) for name, tensor in zip(link.ours, made, strict=True)}
    return found


def _config(
    dialect: Dialect,
    name: str,
    implied: Mapping[str, Any],
    options: Mapping[str, Any],
    named: bool,
) -> ModelConfig | None:
    """Return the configuration that the file's shapes give a model, or None where it is another model."""
    asked = {key: value for key, value in options.items() if key not in ("in_channels", "num_classes")}
    config = build_config(name, **asked)
    known = {setting.name for setting in fields(config)}
    differing = [key for key, value in implied.items() if key in known - {*FREE} and getattr(config, key) != value]
    if differing and not named:
        return None
    # a state dict of ours without what a family can add has official names all the same
    required = {key: value for key, value in dialect.only.items() if key not in find_variant(name)[0].additions}
    if any(getattr(config, key) != value for key, value in required.items()):
        return None
    given = {key: implied[key] for key in ("in_channels", "num_classes") if key in implied}
    if "positions" in implied:
        size = _image_size(config, implied["positions"])
        if size is None:
            return None
        given["image_size"] = size
    try:
        return replace(config, **given, **{key: value for key, value in dialect.options.items() if key not in options})
    except ValueError:
        return None


def _image_size(config: Any, positions: int) -> int | tuple[int, int] | None:
    """Return the image size that a table of positions was made for: the one asked for, or else a square."""
    if config.grid[0] * config.grid[1] == positions:
        return config.image_size
    side, patch = math.isqrt(positions), config.size[0] // config.grid[0]
    return side * patch if side * side == positions else None


def _compare(
    dialect: Dialect,
    name: str,
    config: ModelConfig,
    links: list[Link],
    skipped: Mapping[str, str],
    rest: list[str],
    shapes: Shapes,
) -> Reading:
    expected = expected_shapes(name, config)
    dead = [link for link in links if {*link.ours} <= {*find_variant(name)[0].unread} - expected.keys()]
    links = [link for link in links if link not in dead]
    fitting = tuple(link for link in links if all(expected.get(ours) == shapes[ours] for ours in link.ours))
    there = {ours for link in fitting for ours in link.ours}
    lacking = [ours for ours in expected if ours not in there]
    zeros = tuple(ours for ours in lacking if may_lack(ours, dialect))
    return Reading(
        dialect=dialect,
        model=name,
        config=config,
        links=fitting,
        zeros=zeros,
        missing=tuple(ours for ours in lacking if ours not in zeros),
        skipped={**skipped, **{theirs: UNREAD for link in dead for theirs in link.theirs}},
        misfits=(*rest, *(theirs for link in links if link not in fitting for theirs in link.theirs)),
    )


def _distinct(readings: list[Reading]) -> list[Reading]:
    """Leave out what is read the same way under another name: the same configuration from the same weights."""
    kept: list[Reading] = []
    for reading in sorted(readings, key=_changes):  # the name of the model that needed the fewest options
        if not any((r.config, r.links) == (reading.config, reading.links) for r in kept):
            kept.append(reading)
    return kept


def _changes(reading: Reading) -> int:
    published = vars(find_variant(reading.model)[1].config)
    return sum(value != published[name] for name, value in vars(reading.config).items() if name not in FREE)
