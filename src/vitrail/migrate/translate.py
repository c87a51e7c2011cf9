"""Files and flags of other projects, translated key by key into our settings. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from vitrail.config.sections import Layer, TrainConfig, find_recipe, read_yaml
from vitrail.errors import ConfigError, closest
from vitrail.migrate.official import PROGRAMS, program_of
from vitrail.migrate.projects import NO_DEFAULT, PROJECTS, Case, Project, Say, same, shown

YAML = (".yaml", ".yml")
SECTIONS = {section.name for section in fields(TrainConfig)}
FORMATS = ("file_format", "export_format")
MEASURES = ("evaluate", "eval")
"""Flags of theirs that say what `vitrail evaluate` does anyway."""
COMPAT = ("as_executed", "as_written")
KEYS = frozenset({"compat"}).union(*({*project.keys, *project.aliases} for project in (*PROJECTS, *PROGRAMS)))
"""Every key that may be given on the command line."""


@dataclass(frozen=True)
class Row:
    """What became of one key."""

    key: str
    """Theirs; empty for what stands in their code and cannot be set."""
    value: Any
    written: bool
    """In the file or on the command line, and not their program's default."""
    settings: Mapping[str, Any]
    """Our dotted settings."""
    note: str
    say: Say
    """Whether a run says the note: the run differs from what the file reads as, or something is not to be had."""
    of_training: bool = False
    """Whether the note means nothing where nothing is trained."""


@dataclass(frozen=True)
class Translation:
    """A file of another project, with flags put over it, in our settings."""

    project: str
    compat: str
    rows: tuple[Row, ...]
    layer: Layer

    def remarks(self, sections: Sequence[str] | None = None) -> list[tuple[Say, str]]:
        """Return what a command has to say about the translation: warnings, and notes of some sections or of all.

        A command that reads some sections trains nothing.
        """
        found: list[tuple[Say, str]] = [
            ("note", f"{self.layer.origin}: settings of {self.project}, {self.compat}; `vitrail config` shows each key")
        ]
        for row in self.rows:
            if row.of_training and sections is not None:
                continue
            concerned = sections is None or any(name.split(".")[0] in sections for name in row.settings)
            if row.say == "warning" or (row.say and concerned):
                what = f"{row.key}={shown(row.value)}" if row.written else f"{row.key} is not written"
                found.append((row.say, f"{self.layer.origin}: {what}: {row.note}"))
        return found

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Return (their key, their value, our setting, our value, note) of each key, more lines where it sets more.

        Keys that are not written stand in brackets, and only where they set something.
        """
        lines = []
        for row in self.rows:
            if not row.written and not row.settings:
                continue
            key = row.key if row.written else f"({row.key or 'in its code'})"
            value = "" if row.value is None and not row.written else shown(row.value)
            first, *rest = list(row.settings.items()) or [("", None)]
            lines.append((key, value, first[0], shown(first[1]) if first[0] else "", row.note))
            lines += [("", "", name, shown(setting), "") for name, setting in rest]
        return lines


def detect(content: Mapping[str, Any], origin: str) -> Project:
    """Return the project that knows most of a file's keys.

    Raises:
        ConfigError: None knows half of them, or two know equally many.
    """
    known = {project.name: sum(_name(key, project) in project.keys for key in content) for project in PROJECTS}
    best = max(known.values())
    program = program_of({str(key): value for key, value in content.items()})
    if (theirs := [key for key in content if _name(key, program) in program.keys]) and len(theirs) > best:
        flags = " ".join(f"--{_name(key, program).replace('_', '-')} {shown(content[key])}" for key in theirs[:3])
        raise ConfigError(
            f"{origin}: has the keys of official programs, here {program.name}, which are read as flags and from no "
            f"file; leave the file out and write them behind the command: {flags}{' ...' * (len(theirs) > 3)}"
        )
    found = [project for project in PROJECTS if known[project.name] == best]
    if 2 * best < len(content):
        raise ConfigError(
            f"{origin}: has neither our sections, such as model, data and train, nor the keys of a project that is "
            f"known here: {', '.join(known)}; `vitrail config` lists the recipes to start from"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{origin}: its keys are those of {' and of '.join(project.name for project in found)} alike; write more, "
            f"such as {' or '.join(_own_key(project) for project in found)}"
        )
    return found[0]


def translate(
    content: Mapping[str, Any], origin: str, flags: Mapping[str, Any] | None = None, *, processes: int = 1
) -> Translation:
    """Translate a file of another project, with flags put over it, into our settings.

    Args:
        content: What the file holds; empty reads the flags as those of an official PyTorch program.
        origin: Name of the file, for messages.
        flags: Keys and values of the command line, and `compat`: as_executed, the default, does what their program
            does with the file, as_written what the file reads as.
        processes: Of this run, since their batches count one process.

    Raises:
        ConfigError: A file of no known project, unknown keys, and values that cannot be had, all in one message.
    """
    flags = dict(flags or {})
    compat = str(flags.pop("compat", "as_executed"))
    if compat not in COMPAT:
        raise ConfigError(f"compat is {compat}; it must be {' or '.join(COMPAT)}")
    project = detect(content, origin) if content else program_of(flags)
    problems: list[str] = []
    filed, typed = _known(content, project, origin, problems), _known(flags, project, "command line", problems)
    file_wins = project.file_wins and compat == "as_executed"
    overruled = {
        key: value for key, value in typed.items() if file_wins and key in filed and not same(value, filed[key])
    }
    written = {**filed, **{key: value for key, value in typed.items() if key not in overruled}}
    defaults = {name: key.default for name, key in project.keys.items() if key.default is not NO_DEFAULT}
    defaults |= project.published
    case = Case(project, {**defaults, **written}, frozenset(written), processes, compat == "as_written")
    rows = [Row("", None, False, {name: value}, "", "") for name, value in project.fixed.items()]
    for key in [*written, *(key for key in defaults if key not in written)]:
        value = case.values[key]
        try:
            outcome = project.keys[key].rule(value, case)
        except (ValueError, TypeError) as error:
            where = f"{origin}, not written" if key not in written else "command line" if key in typed else origin
            problems.append(f"{where}: {key} is {shown(value)}; {error}")
            continue
        if key in project.published and key not in written and outcome.settings:
            outcome = replace(outcome, note=f"taken as in the file of {project.name}, {shown(value)}", say="note")
        rows.append(Row(key, value, key in written, outcome.settings, outcome.note, outcome.say, outcome.of_training))
    for key, value in overruled.items():
        note = f"the file overrules the flag in {project.name}; compat=as_written lets the flag win"
        rows.append(Row(key, value, True, {}, note, "warning"))
    if problems:
        raise ConfigError(f"read as settings of {project.name}: {'; '.join(problems)}")
    values: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row.written):
        for name, setting in row.settings.items():
            *path, last = name.split(".")
            place = values
            for part in path:
                place = place.setdefault(part, {})
            place[last] = setting
    return Translation(project.name, compat, (*sorted(rows, key=lambda row: not row.written),), Layer(origin, values))


def _name(key: Any, project: Project) -> str:
    name = str(key).replace("-", "_")
    return name if name in project.keys else project.aliases.get(name, name)


def _known(given: Mapping[str, Any], project: Project, where: str, problems: list[str]) -> dict[str, Any]:
    """Return the values under the project's own names, and add what it does not know to the problems."""
    found = {}
    for key, value in given.items():
        if (name := _name(key, project)) in project.keys:
            found[name] = value
        else:
            hint = closest(str(key), [*project.keys, *project.aliases], 0.6)
            problems.append(f"{where}: {key}: unknown key{hint or '; drop it'}")
    return found


def _own_key(project: Project) -> str:
    """Return a key that no other project knows."""
    others = {key for other in PROJECTS if other is not project for key in (*other.keys, *other.aliases)}
    return next(key for key in project.keys if key not in others)


# Recipes and flags


@dataclass(frozen=True)
class Recipe:
    """Settings to train with, read from a file of ours or of another project."""

    name: str
    """Of the run folder."""
    path: str
    layer: Layer
    translation: Translation | None = None


def split_keys(tokens: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Tell the keys of other projects, which have no section (`epoch_size=3`), from our settings and all else."""
    keys = {}
    rest = []
    for token in tokens:
        if match := re.fullmatch(r"(\w+)=(.*)", token, re.DOTALL):
            keys[match[1]] = _read(match[2])
        else:
            rest.append(token)
    return keys, rest


def read_recipe(recipe: str | None, keys: Mapping[str, Any]) -> Recipe:
    """Read a recipe of ours, a file of another project with `keys` put over it, or keys alone.

    Raises:
        ConfigError: There is no such file, it is of no known kind, or the keys do not go with it.
    """
    named = str(keys.get("model", keys.get("transfer_model", "")))
    if named and (recipe is None or _is_data(recipe)):
        translation = translate({}, "flags", {**({"data_dir": recipe} if recipe else {}), **keys}, processes=_world())
        return Recipe(Path(named).stem, "flags", translation.layer, translation)
    name, path = find_recipe(recipe or "digits")
    layer = read_yaml(path, name)
    if is_foreign(layer.values):
        translation = translate(layer.values, name, keys, processes=_world())
        return Recipe(name, str(path), translation.layer, translation)
    if "compat" in keys:
        raise ConfigError("compat is for files of other projects; drop it")
    if keys:
        key, value = next(iter(keys.items()))
        raise ConfigError(
            f"{key}={shown(value)}: goes with files of other projects alone; write "
            f"{_our_name(key) or 'section.key'}=..., `vitrail config {name}` shows all settings"
        )
    return Recipe(name, str(path), layer)


def read_part(config: str | None, keys: Mapping[str, Any], sections: Sequence[str]) -> Recipe | None:
    """Read what a command other than train takes from a recipe or from flags: of some sections, and of the model.

    `evaluate.batch_size` and `evaluate.device` follow from what another project trains with.
    """
    if config is None and not keys:
        return None
    named = config is not None or "model" in keys
    if config is None and not named:  # the weight file knows the model
        keys = {"model": program_of(keys).models[0], **keys}
    recipe = read_recipe(config, {key: value for key, value in keys.items() if key not in MEASURES})
    values = dict(recipe.layer.values)
    if recipe.translation is not None:
        train = values.get("train", {})
        parts = _world() * train.get("accumulate", 1)
        taken = {"batch_size": train["batch_size"] // parts} if "batch_size" in train else {}
        values["evaluate"] = taken | {key: train[key] for key in ("device",) if key in train}
    model = values.get("model", {})
    if not named:
        model = {key: value for key, value in model.items() if key != "name"}
    part = {name: content for name, content in values.items() if name in sections}
    return Recipe(recipe.name, recipe.path, Layer(recipe.layer.origin, part, model), recipe.translation)


def file_format(config: str) -> str | None:
    """Return what the program whose file this is exports, by the file or by default; None where that is not known."""
    name, path = find_recipe(config)
    content = read_yaml(path, name).values
    if not is_foreign(content):
        return None
    known = detect(content, name).keys
    written = [str(content[key]) for key in FORMATS if content.get(key)]
    usual = [str(known[key].default) for key in FORMATS if key in known and known[key].default is not NO_DEFAULT]
    return next(iter([*written, *usual]), None)


def is_foreign(content: Mapping[str, Any]) -> bool:
    """Tell whether a file holds plain values where ours has sections; two keys of Twins' files hold mappings."""
    mappings = {key for key, value in content.items() if isinstance(value, Mapping)}
    return not (content.keys() <= SECTIONS or mappings - {"params", "parameters"})


def _is_data(recipe: str) -> bool:
    """Tell whether what stands where a recipe would is the folder of images of a command without a file."""
    path = Path(recipe)
    is_recipe = path.suffix in YAML or path.is_file() or (path / "config.yaml").is_file()
    return not is_recipe and (path.is_dir() or len(path.parts) > 1)


def _our_name(key: str) -> str:
    """Return our setting that a key of any project would set, or nothing."""
    for project in (*PROJECTS, *PROGRAMS):
        if (known := project.keys.get(_name(key, project))) is not None:
            case = Case(project, {"batch_size": 1}, frozenset(), 1, as_written=True)
            try:
                settings = known.rule(1, case).settings
            except (ValueError, TypeError, KeyError):
                continue
            if settings:
                return next(iter(settings))
    return ""


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
