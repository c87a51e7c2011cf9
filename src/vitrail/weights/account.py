"""What became of every weight of a file: loaded, renamed, joined, resized, zero-filled, new or skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

UNUSED = "nothing reads it"
"""Note on a weight that the official files have and no model computes with."""


@dataclass(frozen=True)
class Entry:
    """What became of some weights."""

    what: str
    """Loaded, renamed, joined, split, reshaped, resized, zero-filled, new or skipped."""
    theirs: tuple[str, ...] = ()
    """Names of the weights in the file."""
    ours: tuple[str, ...] = ()
    """Official names of the weights; empty where they have none here."""
    note: str = ""

    def __str__(self) -> str:
        sides = [" + ".join(side[:2]) for side in (self.theirs, self.ours) if side]
        text = " -> ".join(dict.fromkeys(sides))
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of every weight of a file."""

    path: str
    dialect: str
    model: str
    entries: tuple[Entry, ...]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    """GELU and epsilons that the weights expect, whatever is asked for."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Name, address, SHA-256 and revision of weights that somebody published; empty for other
    files."""
    notes: tuple[str, ...] = ()
    """What the file does not say itself, and what was taken."""
    doubts: tuple[str, ...] = ()
    """What may be wrong all the same."""

    @property
    def is_head_new(self) -> bool:
        """Whether any row of the head is not from the file, but freshly drawn."""
        return any(entry.what == "new" and "head.weight" in entry.ours for entry in self.entries)

    def counts(self) -> dict[str, int]:
        """Return how many weights fared alike: of ours, or of theirs where they have none here."""
        counts: Counter[str] = Counter()
        for entry in self.entries:
            counts[entry.what] += len(entry.ours or entry.theirs)
        return dict(counts)

    def summarised(self) -> list[tuple[str, int, list[str]]]:
        """Return what was done, to how many weights, and two examples, for each value of `Entry.what`."""
        rows = []
        for what, count in self.counts().items():
            alike = [entry for entry in self.entries if entry.what == what]
            noted = [entry for entry in alike if entry.note]
            shown = noted[:2] or alike[:2]
            rows.append((what, count, list(map(str, shown))))
        return rows

    def summary(self) -> str:
        """Return one line."""
        counts = ", ".join(f"{count} {what}" for what, count in self.counts().items())
        return f"{self.path}: {self.dialect} {self.model}, {counts}"


def list_added(what: str, names: Iterable[str], note: str) -> list[Entry]:
    """Return an entry for each of some weights of ours that the file does not have."""
    return [Entry(what, ours=(name,), note=note) for name in names]


def merge_entries(before: Sequence[Entry], added: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return an account in which later entries stand instead of earlier ones of the same weights."""
    replaced = set(chain.from_iterable(entry.ours for entry in added))
    kept = []
    for entry in before:
        names = tuple(name for name in entry.ours if name not in replaced)
        if names or entry.what == "skipped":
            kept.append(replace(entry, ours=names))
    return (*kept, *added)
