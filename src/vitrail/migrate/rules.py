"""Rules by which a key of another project becomes settings of ours, and what keys and projects are. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import yaml

from vitrail.errors import suggest

Say = Literal["", "note", "warning"]
"""How loud a run says a note: not at all, as a note that it differs from what the file reads as, or
as a warning."""


@dataclass(frozen=True)
class Case:
    """The circumstances that a rule may look at beside the value of its own key."""

    project: Project
    values: Mapping[str, Any]
    """Values of all keys, defaults included, by the project's own names."""
    written: frozenset[str]
    """Keys that stand in the file or on the command line."""
    processes: int
    """Number of processes of this run (world size)."""
    as_written: bool
    """Do what the file reads as, rather than what the project's program does with it."""

    def number(self, key: str, absent: float = 0.0) -> float:
        """Return the value of another key as a number."""
        value = self.values.get(key)
        if value is None:
            return absent
        try:
            return read_number(value)
        except ValueError as error:
            raise ValueError(f"{key} is {format_value(value)}; {error}") from None

    @cached_property
    def batch(self) -> int:
        """Global batch: images of one update, over all processes and micro-batches."""
        images = int(self.number("batch_size", 1))
        return images * self.processes * int(self.number("accumulation_step", 1))

    @property
    def rate_factor(self) -> float:
        """Factor that the program multiplies all its learning rates with."""
        base = self.project.lr_base_batch
        if base is None or self.as_written:
            return 1.0
        return self.batch / base


@dataclass(frozen=True)
class Outcome:
    """Result of a rule; a rule that refuses a value raises a ValueError instead."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Our settings by dotted key."""
    note: str = ""
    """Remark on the translation, for the table of `vitrail config`."""
    say: Say = ""
    """Whether a run says the note too."""
    of_training: bool = False
    """Whether the note means nothing where nothing is trained."""


Rule = Callable[[Any, Case], Outcome]
NO_DEFAULT = object()


@dataclass(frozen=True)
class Key:
    """A key of a project: how its value is read, and which value its program takes where it is not written."""

    rule: Rule
    default: Any = NO_DEFAULT


@dataclass(frozen=True)
class Project:
    """The keys that one project's programs know."""

    name: str
    keys: Mapping[str, Key]
    models: tuple[str, ...] = ()
    """Beginnings of the names of its models, where flags alone have to tell whose they are."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of keys: abbreviated flags, and those of shell scripts and of READMEs."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Our settings for what stands in the project's code."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Values of its own file for keys without a default; taken, and said, where one is not
    written."""
    file_wins: bool = False
    """Whether its program lets the file overrule the command line."""
    lr_base_batch: int | None = None
    """Batch size that its learning rates are meant for: its program multiplies them by the global
    batch over this."""


def note_if(differs: bool) -> Say:
    """Say a note where a run differs from what the file reads as, and otherwise not."""
    return "note" if differs else ""


def warn_if(lost: bool) -> Say:
    """Say a note as a warning where something that was asked for is not to be had, and otherwise not."""
    return "warning" if lost else ""


# Reading values


def read_number(value: Any) -> float:
    """Return a number, which YAML reads as text where it is written 1e-8."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError("it must be a number")


def read_switch(value: Any) -> bool:
    """Return whether a switch is on, written in any of the ways that their parsers take."""
    text = str(value).lower()
    if text in ("true", "yes", "1", "1.0"):
        return True
    if text in ("false", "no", "0", "0.0", "none", ""):
        return False
    raise ValueError("it must be true or false")


def read_text(value: Any) -> str | None:
    """Return text, or None where nothing is written."""
    return None if value in (None, "") else str(value)


def read_drop_rate(value: Any) -> Any:
    """Return a rate of dropout or drop path, which is 0 where nothing is written."""
    return value or 0.0


def read_interval(value: Any) -> Any:
    """Return a number of updates, which is None, for never, where theirs is 0."""
    return value or None


def are_same(value: Any, other: Any) -> bool:
    """Tell whether two values are the same number, switch or word."""
    for read in (read_number, read_switch):
        try:
            return read(value) == read(other)
        except ValueError:
            continue
    return str(value) == str(other)


def format_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


# Making rules


def set_to(*settings: str, read: Callable[[Any], Any] = lambda value: value) -> Rule:
    """Set our settings to the value, or to the result of `read` on it."""
    return lambda value, case: Outcome(dict.fromkeys(settings, read(value)))


def ignore(note: str) -> Rule:
    """Accept any value, which has no effect here."""
    return lambda value, case: Outcome(note=note)


def ignore_switch(note: str) -> Rule:
    """Accept a switch that has no effect here, and say so where it is on."""
    return lambda value, case: Outcome(note=note, say=note_if(read_switch(value)))


def set_only_as_written(setting: str) -> Rule:
    """Set a rate to 0, since their program does not hand it to the model, but to the value where that is asked for."""

    def rule(value: Any, case: Case) -> Outcome:
        if case.as_written:
            return Outcome({setting: value})
        is_asked = read_number(value) != 0
        return Outcome({setting: 0.0}, "not handed to the model by train.py", note_if(is_asked))

    return rule


def follow_if_positive(amount: str, rule: Rule) -> Rule:
    """Follow a rule only where another key, which says how often, is above zero."""

    def conditional_rule(value: Any, case: Case) -> Outcome:
        if case.number(amount):
            return rule(value, case)
        return Outcome(note=f"without effect at {amount} 0")

    return conditional_rule


def accept_only(*allowed: Any, why: str, where: str | None = None) -> Rule:
    """Accept the values that hold here anyway; with `where`, accept any while that other key is zero."""

    def rule(value: Any, case: Case) -> Outcome:
        is_usual = any(are_same(value, one) for one in allowed)
        if is_usual or (where is not None and case.number(where) == 0):
            return Outcome(note="so it is here")
        choices = " or ".join(map(format_value, allowed))
        raise ValueError(f"here it can only be {choices}: {why}")

    return rule


def ignore_unless_as_written(rule: Rule, executed: Any) -> Rule:
    """Ignore a key that their program does not read, but follow its rule where the file is taken as written.

    Args:
        rule: The key's rule, as the file reads.
        executed: Value that the program takes instead; None where there is none.
    """

    def conditional_rule(value: Any, case: Case) -> Outcome:
        if case.as_written:
            return rule(value, case)
        if executed is None:
            return Outcome(note=f"not read by {case.project.name}")
        note = f"not read by {case.project.name}, which takes {format_value(executed)}"
        return Outcome(note=note, say=note_if(not are_same(value, executed)))

    return conditional_rule


def choose(settings: Mapping[Any, Mapping[str, Any]], note: str = "") -> Rule:
    """Set the settings that belong to one of a few words."""

    def rule(value: Any, case: Case) -> Outcome:
        word = str(value).lower()
        if word not in settings:
            raise ValueError(f"it can be {', '.join(map(str, settings))}{suggest(word, settings)}")
        return Outcome(settings[word], note)

    return rule


def set_model(*prefixes: str, **options: Any) -> Rule:
    """Accept the models of one family, with the options of their arithmetic in the project's program."""
    beginnings = " or ".join(prefixes)

    def rule(value: Any, case: Case) -> Outcome:
        if value is None:
            raise ValueError(f"name a model that begins with {beginnings}")
        if not str(value).startswith(prefixes):
            raise ValueError(
                f"of {case.project.name}, models are known here that begin with {beginnings}"
            )
        settings = {f"model.options.{key}": option for key, option in options.items()}
        return Outcome({"model.name": str(value), **settings})

    return rule


def merge_switch(switch: str, setting: str, amount: str) -> tuple[Rule, Rule]:
    """Return the rules of a switch and of its amount, which here are one setting."""

    def rule(value: Any, case: Case) -> Outcome:
        if not read_switch(value):
            return Outcome({setting: None})
        if case.values.get(amount) is None:
            raise ValueError(f"{amount} is not written")
        return Outcome({setting: case.values[amount]})

    return rule, ignore(f"with {switch}")


def replace_defaults(keys: Mapping[str, Key], **defaults: Any) -> dict[str, Key]:
    """Return keys with other defaults."""
    replaced = {name: Key(keys[name].rule, default) for name, default in defaults.items()}
    return {**keys, **replaced}
