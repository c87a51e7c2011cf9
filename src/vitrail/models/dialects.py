"""How each project names the weights of these models, and lays them out, beside the official names that we use.

A dialect is a table of rows, read from top to bottom in either direction; the first row that fits a
name decides, and a name that no row fits is the same in both. In a pattern, {i} stands for a
number, {i+1} for the number after it, and {rest} for the rest of a name. A row with several names
joins or splits tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class How:
    """A change of layout, in both directions."""

    name: str
    """As the report calls it."""
    read: Change
    write: Change


def _keep(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors)


def _join(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(list(tensors))]


def _halve(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [half.contiguous() for half in tensors[0].chunk(2)]


def _cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    rows = len(tensors[0]) * 2 // 3
    return [tensors[0][:rows].contiguous(), tensors[0][rows:].contiguous()]


def _to_words(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0].flatten(2).transpose(1, 2).contiguous()]  # (1, e, side, side) to (1, p, e)


def _to_grid(tensors: Sequence[Tensor]) -> list[Tensor]:
    words = tensors[0].shape[1]
    side = math.isqrt(words)
    return [tensors[0].transpose(1, 2).unflatten(2, (side, words // side)).contiguous()]


HEAD = ("head.{rest}",)
"""What is outside of mmpretrain's backbones."""
ZOO_PREFIX = "model."
"""The zoo's programs put a net into another cell before they load. MindSpore takes a surplus prefix
of a file off, so that bare nets load it too, but never one of the net."""
SAME = How("renamed", _keep, _keep)
JOINED = How("joined", _join, _halve)
"""Two of theirs are one of ours, one below the other."""
SPLIT = How("split", _cut, _join)
"""One of theirs is queries and keys, then values, of ours."""
WORDS = How("reshaped", _to_words, _to_grid)
"""Positions of words: a grid there, a list here."""


@dataclass(frozen=True)
class Row:
    """One line of a dialect's table."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    how: How = SAME


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The names of one project for one family of models; the family's file has it."""

    name: str
    also: tuple[str, ...] = ()
    """Other projects with the same names."""
    rows: tuple[Row, ...] = ()
    absent: tuple[str, ...] = ()
    """Patterns of ours that the project does not have: zeros when read, and they must be zeros to
    be written."""
    instead: str = ""
    """Where they are not zeros: what a user can do to have weights that the project has a place
    for."""
    optional: tuple[str, ...] = ()
    """Patterns of ours that the project's files may lack: zeros then."""
    has_counters: bool = True
    """Whether batch norms have a count of batches, with which nothing is computed; else it is 0 when
    read, and left out when written."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Patterns of theirs that hold no weights, and what they are."""
    prefix: str = ""
    """Before every name but the bare ones, when written."""
    bare: tuple[str, ...] = ()
    """Patterns of theirs that have no prefix."""
    entry: str = ""
    """Where the project's programs look for the weights in a .pth file; elsewhere they stand alone
    in it."""
    mindspore: bool = False
    """Norms have gamma and beta, and files are .ckpt."""
    norms: tuple[str, ...] = ()
    """Modules that are norms, beside those whose name begins so."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the model must be built with to compute what that project computes."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """Where that project reads images otherwise than the model's authors."""
    remedy: str = ""
    """What a user can do to make that project's programs compute otherwise."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a model must have to be one that the project knows, and why not."""
    lacks: tuple[str, ...] = ()
    """Published models that the project does not have, though their shapes are those of one that it
    has."""
    notes: tuple[str, ...] = ()
    """What a user of such a file should know."""
    doubts: tuple[str, ...] = ()
    """What may make numbers wrong without a sign."""

    @property
    def projects(self) -> tuple[str, ...]:
        """All projects with these names."""
        return (self.name, *self.also)


@dataclass(frozen=True)
class Link:
    """Some weights of ours, and those of theirs that hold the same."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: How


def read_names(
    names: Iterable[str], dialect: Dialect
) -> tuple[list[Link], dict[str, str], list[str]]:
    """Return which names of a project hold which of ours, those that hold no weights with what they are, and the rest.

    The rest are names that the project does not use: they have another name there, or the weights
    are absent.
    """
    leaves, rest = {}, []
    for whole in names:
        name = whole.removeprefix(dialect.prefix)
        if dialect.mindspore and _of_norm(name, dialect) in ("weight", "bias"):
            rest.append(whole)
        else:
            leaves[_from_gamma(name) if dialect.mindspore else name] = whole
    used, ignored = [], {}
    for name, whole in leaves.items():
        what = _why_ignored(name, dialect)
        if what is None:
            used.append(name)
        else:
            ignored[whole] = what
    rows = [(_names(row.theirs), _names(row.ours), row.how) for row in dialect.rows]
    foreign = [*dialect.absent]
    for _, group, _ in rows:
        foreign += group
    links = []
    for theirs, ours, how in _pair(used, rows):
        if theirs == ours and _is_one_of(ours[0], foreign):
            rest.append(leaves[theirs[0]])
        else:
            links.append(Link(ours, tuple(leaves[name] for name in theirs), how))
    return links, ignored, rest


def _why_ignored(name: str, dialect: Dialect) -> str | None:
    """Return what a name of a project is, where it holds no weights."""
    why = None
    for pattern, what in dialect.ignored.items():
        if _match(pattern, name) is not None:
            why = what
    return why


def write_names(names: Iterable[str], dialect: Dialect) -> tuple[list[Link], list[str]]:
    """Return under which names a project holds our weights, and those of ours that it has no place for."""
    rows = [(_names(row.ours), _names(row.theirs), row.how) for row in dialect.rows]
    kept, dropped = [], []
    for name in names:
        if is_counter(name) and not dialect.has_counters:
            continue
        has_no_place = _is_one_of(name, dialect.absent)
        (dropped if has_no_place else kept).append(name)
    links = []
    for ours, theirs, how in _pair(kept, rows):
        whole = tuple(_theirs(name, dialect) for name in theirs)
        links.append(Link(ours, whole, how))
    return links, dropped


def may_lack(name: str, dialect: Dialect) -> bool:
    """Say whether a project's files lack a weight of ours that is then zeros."""
    if is_counter(name):
        return not dialect.has_counters
    return _is_one_of(name, (*dialect.absent, *dialect.optional))


def is_counter(name: str) -> bool:
    """Say whether a weight of ours is how many batches a batch norm has seen."""
    return name.endswith(".num_batches_tracked")


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(_match(pattern, name) is not None for pattern in patterns)


def _pair(
    names: Sequence[str], rows: Sequence[tuple[tuple[str, ...], tuple[str, ...], How]]
) -> list[tuple[tuple[str, ...], tuple[str, ...], How]]:
    left, pairs = dict.fromkeys(names), []
    for name in names:
        if name not in left:
            continue  # joined with one before it
        for sources, targets, how in rows:
            match = _match(sources[0], name)
            group = tuple(_fill(source, match) for source in sources) if match is not None else ()
            if match is not None and all(member in left for member in group):
                pairs.append((group, tuple(_fill(target, match) for target in targets), how))
                break
        else:
            group = (name,)
            pairs.append((group, group, SAME))
        for member in group:
            del left[member]
    return pairs


def _names(pattern: str | tuple[str, ...]) -> tuple[str, ...]:
    return (pattern,) if isinstance(pattern, str) else pattern


_PLACE = re.compile(r"\{(\w+)(\+1)?\}")


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    text, end = "", 0
    for place in _PLACE.finditer(pattern):
        text += re.escape(pattern[end : place.start()])
        # a number has a name of one letter; what is longer begins with a letter itself, so that 0.1
        # is no rest
        text += (
            rf"(?P<{place[1]}>\d{{1,6}})"
            if len(place[1]) == 1
            else rf"(?P<{place[1]}>[a-z_][\w.]*)"
        )
        end = place.end()
    return re.compile(text + re.escape(pattern[end:]))


def _match(pattern: str, name: str) -> dict[str, str] | None:
    match = _compile(pattern).fullmatch(name)
    if match is None:
        return None
    values = match.groupdict()
    for place in _PLACE.finditer(pattern):
        key, is_next = place.groups()
        if is_next:  # {i+1} stands for the number after i
            values[key] = str(int(match[key]) - 1)
    return values


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(
        lambda place: str(int(values[place[1]]) + 1) if place[2] else values[place[1]], pattern
    )


_NORM = re.compile(r".*norm\w*")
_LEAF = {"gamma": "weight", "beta": "bias", "weight": "gamma", "bias": "beta"}


def _of_norm(name: str, dialect: Dialect) -> str:
    """Return which weight of a norm has this name; empty where it is none of a norm."""
    module, _, leaf = name.rpartition(".")
    is_norm = module in dialect.norms or _NORM.fullmatch(module) is not None
    return leaf if is_norm and leaf in _LEAF else ""


def _from_gamma(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_LEAF[leaf]}" if leaf in ("gamma", "beta") else name


def _theirs(name: str, dialect: Dialect) -> str:
    leaf = _of_norm(name, dialect) if dialect.mindspore else ""
    name = f"{name.removesuffix(leaf)}{_LEAF[leaf]}" if leaf else name
    return name if _is_one_of(name, dialect.bare) else dialect.prefix + name
