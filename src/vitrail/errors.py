"""The errors a user can cause, phrased as: where, what is wrong, what is allowed or closest, what to do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from unicodedata import category

MAX_NAME = 200
"""Letters of a name that may be meant for another."""


class VitrailError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with status 2."""


class ConfigError(VitrailError, ValueError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another."""


class DataError(VitrailError):
    """Images, labels or folders that are not as they should be."""


class CheckpointError(VitrailError):
    """A weight file that is not one, does not fit, or could not be written."""


class ExportError(VitrailError):
    """A model that cannot be written in another format."""


class TrainingError(VitrailError):
    """A run that cannot go on."""


class LostProcess(VitrailError):
    """Another process of the run has ended, so that this one cannot go on."""


class LostWorker(VitrailError):
    """A process that prepares images was killed, most often for lack of memory; a scheduler may start the same again.

    Args:
        cause: What ended it.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"ended by {cause}; start it again")
        self.cause = cause


class OutputLost(VitrailError):
    """Results that could not be shown, as who reads them is gone, or the disk that they go to is full."""


class MissingExtra(VitrailError, ImportError):
    """An optional package that is not installed."""


class Interrupted(VitrailError):
    """Stopped at once by Ctrl-C, with what to type to go on."""


class Stopped(VitrailError):
    """Saved and stopped because it was told to, with what to type to go on; a scheduler may start it again."""


def harmless(text: object) -> str:
    """Return a text as it may be shown: one line, with escapes for all that a terminal, a log or a reader would obey.

    Those are control characters, line ends, the marks that turn the direction of writing, those that look like nothing,
    and bytes that are no text. Blanks of any width are shown as they are.
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if c.isprintable() or category(c) == "Zs" else ascii(c)[1:-1] for c in shown)


def command(*words: object) -> str:
    """Return a vitrail command as it has to be typed: quoted, and through uv where this one was started by it."""
    started = ["uv", "run", "vitrail"] if "UV" in os.environ else ["vitrail"]
    return shlex.join([*started, *map(str, words)])


def closest(name: str, known: Iterable[str], alike: float = 0.4) -> str:
    """Return "; did you mean 'x'?" for the known name nearest to `name`, at least so `alike`, or nothing."""
    # difflib's own 0.6 misses pairs like deit_tiny and deit_ti_patch16_224
    if len(name) > MAX_NAME:  # comparing it takes its length squared
        return ""
    found = get_close_matches(name, list(known), n=1, cutoff=alike)
    return f"; did you mean {found[0]!r}?" if found else ""


def among(name: str, known: Sequence[str], what: str) -> str:
    """Return "; did you mean 'x'? <What>: x, y, z", or without a near name "; <what>: x, y, z"."""
    near = closest(name, known)
    return f"{near or ';'} {what.capitalize() if near else what}: {', '.join(known)}"


def brief(value: object, most: int = 80) -> str:
    """Return a value as a message shows it: on one line, and never long, whatever stands in a file."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of about {round(value.bit_length() * 0.30103):,} digits"
    if isinstance(value, str | bytes):
        value = value[:most]
    try:
        # lists of thousands, and lists within lists, are cut before they become text
        shown = ascii(_cut(value, 4)) if isinstance(value, list | tuple | dict) else ascii(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return shown if len(shown) <= most else f"{shown[:most]}..."


def _cut(value: object, depth: int) -> object:
    if isinstance(value, dict):
        return {brief(key, 40).strip("'"): _cut(item, depth - 1) for key, item in islice(value.items(), 4) if depth}
    if isinstance(value, list | tuple):
        return type(value)(_cut(item, depth - 1) for item in value[:8] if depth)
    if isinstance(value, str | bytes):
        return value[:80]
    return brief(value) if isinstance(value, int) and value.bit_length() > 256 else value


def few(names: Sequence[str] | frozenset[str], most: int = 3) -> str:
    """Return the first names, sorted, and how many more there are."""
    shown = [printable(name) for name in sorted(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(path: str | Path) -> str:
    """Return a path with bytes that are no text escaped: they are surrogates, which no terminal or file would take."""
    return str(path).encode("utf-8", "backslashreplace").decode()
