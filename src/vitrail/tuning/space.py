"""The space of a search: which settings take which values, read and checked before the first trial. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import Layer
from vitrail.config.values import quote, read_value, to_plain, type_name
from vitrail.errors import ConfigError, shorten, suggest
from vitrail.migrate.rules import format_value

PARTS = ("choices", "low", "high", "log", "step", "when")
"""Keys of an entry of a space."""
SAME_FOR_ALL = (
    "data.",
    "output.",
    "weights.",
    "train.seed",
    "train.monitor",
    "train.eval_every",
    "train.max_hours",
    "train.device",
)
"""Beginnings of the settings that are the same in all trials, which otherwise could not be compared."""
MOST_CHOICES = 1000
"""Largest number of values of a setting."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting of a space, with the values that it may take: choices, or all numbers of a range."""

    key: str
    """Dotted key of the setting, or a key of another project's file."""
    choices: tuple[Any, ...] = ()
    """Values to choose from; empty for a range."""
    low: float = 0.0
    """Least value of a range."""
    high: float = 0.0
    """Largest value of a range."""
    step: float | None = None
    """Distance of the values of a range; None for all of them."""
    log: bool = False
    """Whether the range is searched by its logarithm."""
    is_whole: bool = False
    """Whether the values of a range are whole numbers."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of other settings of the space with which this one is searched; otherwise the recipe's
    stands."""

    @property
    def is_foreign(self) -> bool:
        """Whether the key is one of another project's file."""
        return "." not in self.key

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Say whether the setting is searched beside the values of others."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of those that the setting may take."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.step is None:
            return not self.is_whole or value == int(value)
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def grid(self) -> list[Any]:
        """Return all values.

        Raises:
            ConfigError: A range without a step has no end of them.
        """
        if self.choices:
            return list(self.choices)
        step = self.step if self.step is not None or not self.is_whole else 1
        if step is None or self.log:
            raise ConfigError(
                f"{self.key}: a grid needs a list of values, or a range with a step; give one of "
                "them, or take the sampler tpe or random"
            )
        count = int((self.high - self.low) / step + 1e-9) + 1
        values = [self.low + number * step for number in range(count)]
        return [round(value) for value in values] if self.is_whole else values

    def plain(self) -> Any:
        """Return the entry as YAML holds it."""
        entry: dict[str, Any] = {}
        if self.choices:
            entry["choices"] = to_plain(list(self.choices))
        else:
            entry |= {"low": self.low, "high": self.high}
            if self.step is not None:
                entry["step"] = self.step
            if self.log:
                entry["log"] = True
        if self.when:
            entry["when"] = {key: to_plain(list(values)) for key, values in self.when.items()}
        return entry["choices"] if entry.keys() == {"choices"} else entry

    def __str__(self) -> str:
        if self.choices:
            text = " or ".join(format_value(to_plain(value)) for value in self.choices)
        else:
            text = f"{self.low:g} to {self.high:g}"
            if self.step is not None:
                text += f" in steps of {self.step:g}"
            if self.log:
                text += ", by the logarithm"
        for key, values in self.when.items():
            allowed = " or ".join(format_value(to_plain(value)) for value in values)
            text += f"; where {key} is {allowed}"
        return text


Space = tuple[Dimension, ...]
"""The settings of a search; one that depends on another comes after it."""


def read_space(content: Mapping[Any, Any], origin: str, foreign: Sequence[str] = ()) -> Space:
    """Read a space.

    Args:
        content: Entries by the keys of settings, each a list of values, or a mapping with low and
            high, and where wanted log, step and when.
        origin: Where it is written, for messages.
        foreign: Keys of another project's file, which may be searched too.

    Raises:
        ConfigError: Unknown keys, ranges that are none, values of a wrong type, all in one message.
    """
    dimensions: list[Dimension] = []
    problems: list[str] = []
    for key, entry in content.items():
        try:
            dimensions.append(_read_entry(str(key), entry, foreign))
        except ValueError as error:
            problems.append(f"{origin}: {shorten(str(key)).strip(chr(39))}: {error}")
    if not content:
        problems.append(
            f"{origin}: holds no setting; write one, such as optim.lr: {{low: 1e-4, high: 1e-2, "
            "log: true}"
        )
    if not problems:
        problems = [f"{origin}: {problem}" for problem in _find_wrong_conditions(dimensions)]
    if problems:
        raise ConfigError("; ".join(problems))
    return _in_order(dimensions, origin)


def _read_entry(key: str, entry: Any, foreign: Sequence[str]) -> Dimension:
    """Read one setting; a ValueError says what is wrong with it."""
    kind = find_kind(key, foreign)
    if isinstance(entry, list | tuple):
        entry = {"choices": entry}
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"is {quote(entry)}; give a list of values, or a range as {{low: 0.1, high: 0.5}}"
        )
    for part in entry:
        if part not in PARTS:
            near = suggest(str(part), PARTS) or f"; it has {', '.join(PARTS)}"
            raise ValueError(f"{part}: unknown key{near}")
    when = _read_when(entry.get("when", {}), foreign)
    if "choices" not in entry:
        return _read_range(key, entry, kind, when)
    if rest := sorted(entry.keys() & {"low", "high", "log", "step"}):
        raise ValueError(f"choices and {rest[0]} are both given; give a list or a range")
    return Dimension(key=key, choices=_read_choices(entry["choices"], kind), when=when)


def find_kind(key: str, foreign: Sequence[str] = ()) -> Any:
    """Return the type of a setting; a ValueError says that there is none, or that it cannot be searched."""
    if key in foreign:
        return Any
    kinds = kinds_of_settings()
    # options of the model have no schema but the model's own
    if key.startswith("model.options.") and key.count(".") == 2:
        return Any
    if key not in kinds:
        near = suggest(key, [*kinds, *foreign])
        raise ValueError(f"unknown setting{near or '; docs/config.md has all of them'}")
    if key.startswith(SAME_FOR_ALL):
        raise ValueError(
            "is the same in all trials, which otherwise could not be compared; set it as "
            f"{key}=VALUE"
        )
    return kinds[key]


@cache
def kinds_of_settings() -> Mapping[str, Any]:
    """Return the type of each setting by its dotted key."""
    kinds = {}
    for section, cls in get_type_hints(TrainConfig).items():
        for name, kind in get_type_hints(cls).items():
            kinds[f"{section}.{name}"] = kind
    return kinds


def _read_choices(choices: Any, kind: Any) -> tuple[Any, ...]:
    """Read a list of values."""
    if not isinstance(choices, list | tuple) or not choices:
        raise ValueError(f"is {quote(choices)}; give a list of values")
    if len(choices) > MOST_CHOICES:
        raise ValueError(f"has {len(choices):,} values; {MOST_CHOICES:,} are the most")
    values: list[Any] = []
    for choice in choices:
        value = _read(choice, kind)
        if any(value == other and type(value) is type(other) for other in values):
            raise ValueError(f"{quote(choice)} is given twice; drop one")
        values.append(value)
    return tuple(values)


def _read(value: Any, kind: Any, where: str = "") -> Any:
    """Return a value as the type of its setting, with lists for tuples.

    Args:
        value: What was given.
        kind: Type of the setting.
        where: Part of the entry that gives it; empty for one of its choices.
    """
    try:
        return to_plain(read_value(value, kind))
    except ValueError as error:
        raise ValueError(f"{where} is {quote(value)}; it must be {error}".lstrip()) from None


def _read_range(
    key: str, entry: Mapping[str, Any], kind: Any, when: Mapping[str, tuple[Any, ...]]
) -> Dimension:
    """Read a range of numbers."""
    if absent := [name for name in ("low", "high") if entry.get(name) is None]:
        raise ValueError(f"has no {absent[0]}; give low and high, or a list of values")
    number = _number_kind(kind, [entry[name] for name in ("low", "high", "step") if name in entry])
    if number is None:
        raise ValueError(f"is {type_name(kind)}, which has no range; give a list of values")
    low, high = (_read(entry[name], number, name) for name in ("low", "high"))
    log = _read(entry.get("log", False), bool, "log")
    step = None
    if entry.get("step") is not None:
        step = _read(entry["step"], number, "step")
    if low >= high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high")
    if log and low <= 0:
        raise ValueError(f"low is {low}; it must be above 0 where log is true")
    if step is not None and log:
        raise ValueError("step and log are both given; drop one")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step is {step}; it must be above 0 and at most {high - low:g}")
    if step is not None:  # the last value that a step reaches
        high = number(f"{low + math.floor((high - low) / step + 1e-9) * step:.12g}")
    return Dimension(
        key=key,
        low=low,
        high=high,
        step=step,
        log=log,
        is_whole=number is int,
        when=when,
    )


def _number_kind(kind: Any, given: Sequence[Any]) -> Any:
    """Return whether a setting takes whole numbers or any; None where it takes no numbers."""
    if kind is Any:
        return int if all(type(number) is int for number in given) else float
    kinds = [one for one in (get_args(kind) or (kind,)) if one is not NoneType]
    for number in (float, int):
        if number in kinds:
            return number
    return None


def _read_when(when: Any, foreign: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read the condition of an entry, each value as the type of its setting."""
    if not isinstance(when, Mapping):
        raise ValueError(
            f"when is {quote(when)}; write {{other.setting: value}}, or a list of values"
        )
    read = {}
    for key, values in when.items():
        allowed = values if isinstance(values, list | tuple) else [values]
        if not allowed:
            raise ValueError(
                f"when gives no value of {key}; write {{{key}: value}}, or a list of values"
            )
        kind: Any = Any
        with suppress(ValueError):  # a setting that there is not is no setting of the space either
            kind = find_kind(str(key), foreign)
        read[str(key)] = tuple(_read(value, kind, f"when {key}") for value in allowed)
    return read


def _find_wrong_conditions(dimensions: Sequence[Dimension]) -> list[str]:
    """Say which conditions can never hold."""
    known = {dimension.key: dimension for dimension in dimensions}
    problems = []
    for dimension in dimensions:
        for key, values in dimension.when.items():
            if key not in known:
                near = suggest(key, [name for name in known if name != dimension.key])
                problems.append(
                    f"{dimension.key}: when names {key}, which is no setting of the space"
                    f"{near or '; add it, or drop the condition'}"
                )
                continue
            for value in values:
                if not known[key].holds(value):
                    problems.append(
                        f"{dimension.key}: when wants {key} to be {format_value(value)}, which it "
                        f"never is; it is {known[key]}"
                    )
    return problems


def _in_order(dimensions: Sequence[Dimension], origin: str) -> Space:
    """Return the settings so that each comes after those that it depends on.

    Raises:
        ConfigError: Conditions that go round in a circle.
    """
    waiting = list(dimensions)
    placed: dict[str, Dimension] = {}
    while waiting:
        ready = [one for one in waiting if one.when.keys() <= placed.keys()]
        if not ready:
            names = ", ".join(one.key for one in waiting)
            raise ConfigError(
                f"{origin}: the conditions of {names} go round in a circle; drop one of them"
            )
        placed |= {one.key: one for one in ready}
        waiting = [one for one in waiting if one.key not in placed]
    return tuple(placed.values())


def to_settings(values: Mapping[str, Any], origin: str) -> Layer:
    """Return values by dotted keys as a layer of settings; keys of other projects are left out."""
    layer: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = layer
        for section in sections:
            place = place.setdefault(section, {})
        if sections:
            place[name] = value
    return Layer(origin, layer)


def list_grid(space: Space) -> list[dict[str, Any]]:
    """Return every combination of values, the conditions regarded, in order.

    Raises:
        ConfigError: A range without a step.
    """
    points: list[dict[str, Any]] = [{}]
    for dimension in space:
        values = dimension.grid()
        longer: list[dict[str, Any]] = []
        for point in points:
            if dimension.is_active(point):
                longer += [{**point, dimension.key: value} for value in values]
            else:
                longer.append(point)
        points = longer
        if len(points) > 100_000:
            raise ConfigError(
                f"the grid has more than {100_000:,} points; make it coarser, or take the sampler "
                "tpe or random"
            )
    return points


def encode(value: Any) -> Any:
    """Return a choice as the sampler keeps it: plain values as they are, lists and mappings as text."""
    return json.dumps(value) if isinstance(value, list | dict) else value
