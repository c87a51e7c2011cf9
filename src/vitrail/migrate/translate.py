"""Files and flags of other projects, translated key by key into our settings. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitrail.config.resolve import Layer
from vitrail.errors import ConfigError, suggest
from vitrail.migrate.mindcv import MINDCV
from vitrail.migrate.model_zoo import T2T, TWINS, ZOO_TNT
from vitrail.migrate.official import PROGRAMS, find_program
from vitrail.migrate.rules import NO_DEFAULT, Case, Project, Say, are_same, format_value

COMPAT = ("as_executed", "as_written")
"""Values of `compat`: do what their program does with a file, or what the file reads as."""
PROJECTS = (MINDCV, ZOO_TNT, T2T, TWINS)
"""Projects whose files are read."""
KEYS = frozenset({"compat"}).union(
    *({*project.keys, *project.aliases} for project in (*PROJECTS, *PROGRAMS))
)
"""Every key that may be given on the command line."""


@dataclass(frozen=True)
class Row:
    """The translation of one key."""

    key: str
    """Key of their project; empty for what stands in their code and cannot be set."""
    value: Any
    """Value of the key, or its default."""
    written: bool
    """Whether the key stands in the file or on the command line, and is not their program's
    default."""
    settings: Mapping[str, Any]
    """Our settings by dotted key."""
    note: str
    """Remark on the translation."""
    say: Say
    """Whether a run says the note, and how loud."""
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
        origin = self.layer.origin
        remarks: list[tuple[Say, str]] = [
            (
                "note",
                f"{origin}: settings of {self.project}, {self.compat}; `vitrail config` shows each "
                "key",
            )
        ]
        for row in self.rows:
            if row.of_training and sections is not None:
                continue
            row_sections = {name.split(".")[0] for name in row.settings}
            is_concerned = sections is None or bool(row_sections.intersection(sections))
            if row.say == "warning" or (row.say and is_concerned):
                cause = f"{row.key} is not written"
                if row.written:
                    cause = f"{row.key}={format_value(row.value)}"
                remarks.append((row.say, f"{origin}: {cause}: {row.note}"))
        return remarks

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Return (their key, their value, our setting, our value, note) of each key, more lines where it sets more.

        Keys that are not written stand in brackets, and only where they set something.
        """
        lines = []
        for row in self.rows:
            if not row.written and not row.settings:
                continue
            key = row.key if row.written else f"({row.key or 'in its code'})"
            value = format_value(row.value)
            if row.value is None and not row.written:
                value = ""
            settings = [(name, format_value(setting)) for name, setting in row.settings.items()]
            first, *rest = settings or [("", "")]
            lines.append((key, value, *first, row.note))
            lines += [("", "", *setting, "") for setting in rest]
        return lines


def find_project(content: Mapping[str, Any], origin: str) -> Project:
    """Return the project that knows most of a file's keys.

    Raises:
        ConfigError: None knows half of them, or two know equally many.
    """
    known = {}
    for project in PROJECTS:
        known[project.name] = sum(find_key(key, project) in project.keys for key in content)
    best = max(known.values())
    _refuse_flags_in_file(content, origin, best)
    if 2 * best < len(content):
        raise ConfigError(
            f"{origin}: has neither our sections, such as model, data and train, nor the keys of a "
            "project that is "
            f"known here: {', '.join(known)}; `vitrail config` lists the recipes to start from"
        )
    candidates = [project for project in PROJECTS if known[project.name] == best]
    if len(candidates) > 1:
        names = " and of ".join(project.name for project in candidates)
        examples = " or ".join(_find_own_key(project) for project in candidates)
        raise ConfigError(
            f"{origin}: its keys are those of {names} alike; write more, such as {examples}"
        )
    return candidates[0]


def _refuse_flags_in_file(content: Mapping[str, Any], origin: str, best: int) -> None:
    """Refuse a file whose keys are mostly those of an official program, which reads flags and no file.

    Args:
        content: Keys and values of the file.
        origin: Name of the file, for messages.
        best: Number of keys that a project with files knows.

    Raises:
        ConfigError: With the flags to type instead.
    """
    program = find_program({str(key): value for key, value in content.items()})
    keys = [key for key in content if find_key(key, program) in program.keys]
    if len(keys) <= best:
        return
    flags = []
    for key in keys[:3]:
        flag = find_key(key, program).replace("_", "-")
        flags.append(f"--{flag} {format_value(content[key])}")
    if len(keys) > 3:
        flags.append("...")
    raise ConfigError(
        f"{origin}: has the keys of official programs, here {program.name}, which are read as "
        "flags and from no "
        f"file; leave the file out and write them behind the command: {' '.join(flags)}"
    )


def translate(
    content: Mapping[str, Any],
    origin: str,
    flags: Mapping[str, Any] | None = None,
    *,
    processes: int = 1,
) -> Translation:
    """Translate a file of another project, with flags put over it, into our settings.

    Args:
        content: Keys and values of the file; empty reads the flags as those of an official PyTorch
            program.
        origin: Name of the file, for messages.
        flags: Keys and values of the command line, and `compat`: as_executed, the default, does
            what their program does with the file, as_written what the file reads as.
        processes: Number of processes of this run (world size), since their batches count one
            process.

    Raises:
        ConfigError: A file of no known project, unknown keys, and values that cannot be had, all in
            one message.
    """
    flags = dict(flags or {})
    compat = str(flags.pop("compat", "as_executed"))
    if compat not in COMPAT:
        raise ConfigError(f"compat is {compat}; it must be {' or '.join(COMPAT)}")
    project = find_project(content, origin) if content else find_program(flags)

    # The values that their program would see: defaults, then the file, then the command line
    problems: list[str] = []
    filed = _rename_keys(content, project, origin, problems)
    typed = _rename_keys(flags, project, "command line", problems)
    overruled = {}
    if project.file_wins and compat == "as_executed":
        overruled = _find_overruled(typed, filed)
    written = {**filed, **typed, **{key: filed[key] for key in overruled}}
    defaults = _collect_defaults(project)
    values = {**defaults, **written}
    case = Case(project, values, frozenset(written), processes, compat == "as_written")

    # A row for each fact of their code, for each key, and for each flag that counts nothing
    rows = [Row("", None, False, {name: value}, "", "") for name, value in project.fixed.items()]
    keys = {**written, **defaults}  # in the order of the file, then those that are not written
    rows += _follow_rules(case, keys, origin, typed, problems)
    for key, value in overruled.items():
        note = f"the file overrules the flag in {project.name}; compat=as_written lets the flag win"
        rows.append(Row(key, value, True, {}, note, "warning"))
    if problems:
        raise ConfigError(f"read as settings of {project.name}: {'; '.join(problems)}")

    rows.sort(key=lambda row: not row.written)
    return Translation(project.name, compat, tuple(rows), Layer(origin, _nest_settings(rows)))


def find_key(key: Any, project: Project) -> str:
    """Return the project's own name of a key, which may be an alias or have hyphens; others as they are."""
    name = str(key).replace("-", "_")
    if name in project.keys:
        return name
    return project.aliases.get(name, name)


def _rename_keys(
    given: Mapping[str, Any], project: Project, where: str, problems: list[str]
) -> dict[str, Any]:
    """Return the values under the project's own names, and add the keys that it does not know to the problems."""
    values = {}
    for key, value in given.items():
        name = find_key(key, project)
        if name in project.keys:
            values[name] = value
            continue
        hint = suggest(str(key), [*project.keys, *project.aliases], 0.6)
        problems.append(f"{where}: {key}: unknown key{hint or '; drop it'}")
    return values


def _find_overruled(typed: Mapping[str, Any], filed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that the file has too, with another value."""
    overruled = {}
    for key, value in typed.items():
        if key in filed and not are_same(value, filed[key]):
            overruled[key] = value
    return overruled


def _collect_defaults(project: Project) -> dict[str, Any]:
    """Return the values of keys that are not written: those of the program, and of its own file for others."""
    defaults = {}
    for name, key in project.keys.items():
        if key.default is not NO_DEFAULT:
            defaults[name] = key.default
    return {**defaults, **project.published}


def _follow_rules(
    case: Case,
    keys: Iterable[str],
    origin: str,
    typed: Mapping[str, Any],
    problems: list[str],
) -> list[Row]:
    """Return a row for each key, and add refused values to the problems.

    Args:
        case: The project, its values and how they are taken.
        keys: Keys that are written or have a default.
        origin: Name of the file, for messages.
        typed: Keys of the command line.
        problems: List that refusals are added to.
    """
    rows = []
    for key in keys:
        try:
            rows.append(_translate_key(key, case))
        except (ValueError, TypeError) as error:
            where = origin
            if key not in case.written:
                where = f"{origin}, not written"
            elif key in typed:
                where = "command line"
            problems.append(f"{where}: {key} is {format_value(case.values[key])}; {error}")
    return rows


def _translate_key(key: str, case: Case) -> Row:
    """Return the row of a key; a ValueError or TypeError of its rule says why its value cannot be had."""
    project = case.project
    value = case.values[key]
    is_written = key in case.written
    outcome = project.keys[key].rule(value, case)
    if key in project.published and not is_written and outcome.settings:
        note = f"taken as in the file of {project.name}, {format_value(value)}"
        outcome = replace(outcome, note=note, say="note")
    return Row(
        key, value, is_written, outcome.settings, outcome.note, outcome.say, outcome.of_training
    )


def _nest_settings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings of all rows by section; those that are written win over defaults."""
    values: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row.written):
        for name, setting in row.settings.items():
            *path, last = name.split(".")
            place = values
            for part in path:
                place = place.setdefault(part, {})
            place[last] = setting
    return values


def _find_own_key(project: Project) -> str:
    """Return a key that no other project knows."""
    others = set()
    for other in PROJECTS:
        if other is not project:
            others |= {*other.keys, *other.aliases}
    return next(key for key in project.keys if key not in others)
