"""Merge defaults, recipe and command line into one checked configuration, and write it back as YAML. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import yaml

from vitrail.config.commands import (
    CheckConfig,
    ConvertConfig,
    DataConfig,
    DescribedConfig,
    EmbedConfig,
    EvaluateConfig,
    PredictConfig,
    TrainConfig,
)
from vitrail.config.values import Text, quote, read_value, to_plain
from vitrail.errors import ConfigError, format_choices, tell_syntax
from vitrail.files import read_regular

MOST_SETTINGS = 2**20
"""Largest size of a file of settings in bytes; the largest recipe has a few thousand."""
MOST_VALUES = 20_000
"""Largest number of values of a file of settings."""
CHOSEN = "auto"
"""Entry of a recipe with the settings that were chosen automatically, beside its sections."""
UNFINISHED = "unfinished"
"""What stands there while `vitrail finetune` still plans."""
MOST_NESTED = 16
"""Largest depth of values within values of a file of settings."""

T = TypeVar(
    "T",
    TrainConfig,
    EvaluateConfig,
    PredictConfig,
    EmbedConfig,
    CheckConfig,
    DataConfig,
    ConvertConfig,
    DescribedConfig,
)


@dataclass(frozen=True)
class Layer:
    """Some settings, and where they were written."""

    origin: str
    """Name of the file, or `command line`, as messages give it."""
    values: Mapping[str, Any]
    """Settings by section and key, neither checked nor converted."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Section `model` of a file whose other settings are taken for weights that exist: these have
    to bear it out."""
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that `vitrail finetune` chose, by their dotted keys, each with its `value` and the
    `reason` for it."""

    def origin_of(self, key: str, value: Any) -> str:
        """Return where a setting comes from: `auto` and the reason, where it has the value that was chosen for it."""
        choice = self.chosen.get(key)
        if choice is not None and choice["value"] == value:
            return f"auto: {choice['reason']}"
        return self.origin


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A complete configuration, and the origin of each dotted key that is not a default."""

    config: T
    origins: Mapping[str, str]


# Resolving


def resolve(cls: type[T], layers: Iterable[Layer]) -> Resolved[T]:
    """Build a configuration from defaults and layers, the later ones winning.

    Raises:
        ConfigError: Unknown keys, wrong types and values out of range, all in one message.
    """
    hints = get_type_hints(cls)
    sections = {section.name: hints[section.name] for section in fields(cls)}
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for layer in layers:
        for section, content in layer.values.items():
            if section not in sections:
                known = format_choices(str(section), list(sections), "sections")
                problems.append(f"{layer.origin}: {section}: unknown section{known}")
                continue
            accepted, refused = _read_section(section, sections[section], content)
            problems += [f"{layer.origin}: {problem}" for problem in refused]
            if accepted:
                _merge(values.setdefault(section, {}), accepted)
            for key in accepted:
                dotted = f"{section}.{key}"
                origins[dotted] = layer.origin_of(dotted, content[key])
    built = {name: section(**values.get(name, {})) for name, section in sections.items()}
    if problems:
        # ranges of what could be read are said too, so that all is mended at once
        for name in values:
            problems += [f"{name}.{problem}" for problem in built[name].problems()]
        raise ConfigError("; ".join(problems))
    return Resolved(cls(**built), origins)


def _read_section(name: str, section: type, content: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a section by key, as the types of its settings, and what is wrong with the others."""
    if not isinstance(content, Mapping):
        return {}, [f"{name} is a section; write {name}.<key>=<value>, or a mapping in YAML"]
    hints = get_type_hints(section)
    accepted = {}
    problems = []
    for key, value in content.items():
        if key not in hints:
            known = format_choices(str(key), list(hints), "known keys")
            problems.append(f"{name}.{key}: unknown key{known}")
            continue
        try:
            accepted[key] = read_value(value, hints[key])
        except ValueError as error:
            problems.append(f"{name}.{key} is {quote(value)}; it must be {error}")
    return accepted, problems


def _merge(values: dict[str, Any], later: Mapping[str, Any]) -> None:
    """Put the values of a later layer over those of a section; mappings such as model.options are merged."""
    for key, value in later.items():
        if isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value


# Reading


def parse_command_line(tokens: Sequence[str]) -> Layer:
    """Read `section.key=value` tokens; values are YAML, so lists are written [0.5, 0.5].

    Raises:
        ConfigError: A token that is not of this form.
    """
    values: dict[str, Any] = {}
    for token in tokens:
        dotted, equals, text = token.partition("=")
        *path, key = dotted.split(".")
        if not equals or not path or not all(re.fullmatch(r"\w+", part) for part in (*path, key)):
            raise ConfigError(
                f"command line: {token!r} is not a setting; write section.key=value, such as "
                "optim.lr=1e-3"
            )
        target = values
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    f"command line: {token!r} sets a part of what another setting sets whole; give "
                    "one of them"
                )
        target[key] = Text(text)
    return Layer("command line", values)


def read_yaml(
    path: Path,
    origin: str | None = None,
    *,
    holds: str = "sections such as model, data and train",
    advice: str = "`vitrail config` lists the recipes",
) -> Layer:
    """Read a file of settings.

    Args:
        path: A YAML file.
        origin: What messages call the file; its path where none is given.
        holds: What the file is to hold, for messages.
        advice: What to do where it cannot be read.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not hold keys with values.
    """
    try:
        content = yaml.load(read_regular(path, MOST_SETTINGS).decode("utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({_describe_fault(error)})") from error
    # PyYAML lets a bad date through as ValueError
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML ({tell_syntax(error)})") from error
    excess = find_excess(content)
    if excess:
        raise ConfigError(f"{path}: {excess}, which no setting is")
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise ConfigError(f"{path}: holds {kind}, not {holds}")
    chosen = content.get(CHOSEN, {})
    if chosen == UNFINISHED:
        raise ConfigError(
            f"{path}: `vitrail finetune` plans it, or was killed while it did; then delete it, and "
            "plan again"
        )
    if not _are_choices(chosen):
        return Layer(origin or str(path), content)
    settings = dict(content)
    settings.pop(CHOSEN, None)
    return Layer(origin or str(path), settings, chosen=chosen)


def _describe_fault(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong with a YAML text, and in which line."""
    text = " ".join(part for part in (error.context, error.problem) if part)
    if error.problem_mark is None:
        return text
    return f"{text}, line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def _are_choices(chosen: Any) -> bool:
    """Say whether an entry holds what `vitrail finetune` notes of its choices, and not another project's setting."""
    return isinstance(chosen, Mapping) and all(
        isinstance(choice, Mapping) and choice.keys() == {"value", "reason"}
        for choice in chosen.values()
    )


def find_excess(content: Any) -> str:
    """Say what no settings have: a circle, too many values, or a number without end; nothing where there is none.

    Values that a file writes once and names often are counted as often as they are named.
    """
    waiting = [(content, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return ""
        value, depth = waiting.pop()
        if depth > MOST_NESTED:
            return f"nests values more than {MOST_NESTED} deep"
        if isinstance(value, int) and value.bit_length() > 64:
            return "has a whole number of more than 64 bits"
        parts: Iterable[Any] = ()
        if isinstance(value, Mapping):
            parts = [part for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            parts = value
        waiting += [(part, depth + 1) for part in parts]
    return f"holds more than {MOST_VALUES:,} values"


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML reader that refuses a key written twice, where PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping, not a word", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# Writing


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values that YAML and JSON can hold and `resolve` reads back."""
    return to_plain(asdict(config))


def to_yaml(config: TrainConfig, header: str = "") -> str:
    """Return a configuration as YAML, one section a paragraph, with `header` as a comment above."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    sections = to_dict(config).items()
    return comment + "\n".join(
        yaml.safe_dump({name: section}, sort_keys=False) for name, section in sections
    )


def flatten(config: Any) -> dict[str, Any]:
    """Return {dotted key: value} of a configuration."""
    values = {}
    for section, content in to_dict(config).items():
        for key, value in content.items():
            values[f"{section}.{key}"] = value
    return values
