"""The errors a user can cause, phrased as: where, what is wrong, what is allowed or closest, what to do."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from unicodedata import category

MAX_NAME = 200
"""Largest number of characters of a name that may be meant for another."""


class VitrailError(Exception):
    """An error that the user can mend; the command line prints it as one line and exits with status 2."""


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


class Ended(KeyboardInterrupt):
    """Told to end by a signal of the system, as a terminal tells it by Ctrl-C.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        """The exit status that shells give to what a signal has ended."""


def escape_text(text: object) -> str:
    """Return a text as it may be shown: one line, with escapes for all that a terminal, a log or a reader would obey.

    Those are control characters, line ends, the marks that turn the direction of writing, those
    that look like nothing, and bytes that are no text. Blanks of any width are shown as they are.
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    characters = []
    for character in shown:
        is_harmless = character.isprintable() or category(character) == "Zs"
        characters.append(character if is_harmless else ascii(character)[1:-1])
    return "".join(characters)


_names_flags: ContextVar[bool] = ContextVar("names_flags", default=False)


@contextmanager
def naming_flags(wanted: bool = True) -> Iterator[None]:
    """Let messages name options by the flags of the command line; elsewhere they have the arguments of Python.

    Args:
        wanted: Whether it was the command line that was called, such as by the process that started
            this one.
    """
    token = _names_flags.set(wanted)
    try:
        yield
    finally:
        _names_flags.reset(token)


def names_flags() -> bool:
    """Say whether messages are read by someone who typed flags."""
    return _names_flags.get()


def name_option(name: str) -> str:
    """Return the name of an option for whoever gave it: --batch-size in the shell, batch_size in Python."""
    return f"--{name.replace('_', '-')}" if names_flags() else name


def write_option(name: str, value: object = "") -> str:
    """Return an option as it was given, or has to be: --format onnx in the shell, format=onnx in Python.

    Args:
        name: Name of the argument in Python.
        value: What it is set to; nothing leaves that open, and True is a flag that stands alone.
    """
    if not names_flags():
        return f"{name}={value}"
    return name_option(name) if value is True or value == "" else f"{name_option(name)} {value}"


def command(*words: object, processes: int = 1) -> str:
    """Return a vitrail command as it has to be typed: quoted, and through uv where this one was started by it.

    Args:
        words: What stands after `vitrail`.
        processes: Processes that it is to be started in; torchrun starts more than one.
    """
    program = ["vitrail"]
    if processes > 1:
        program = ["torchrun", "--nproc-per-node", str(processes), "-m", "vitrail"]
    if "UV" in os.environ:  # set by `uv run`
        program = ["uv", "run", *program]
    return shlex.join([*program, *map(str, words)])


def suggest(name: str, known: Iterable[str], alike: float = 0.4) -> str:
    """Return "; did you mean 'x'?" for the known name nearest to `name`, or nothing.

    Args:
        name: What was written.
        known: Names that would have been right.
        alike: Smallest similarity of a suggestion, from 0 to 1.
    """
    if len(name) > MAX_NAME:  # comparing it takes its length squared
        return ""
    # difflib's own 0.6 misses pairs like deit_tiny and deit_ti_patch16_224
    matches = get_close_matches(name, list(known), n=1, cutoff=alike)
    if not matches:
        return ""
    return f"; did you mean {matches[0]!r}?"


def format_choices(name: str, known: Sequence[str], what: str) -> str:
    """Return "; did you mean 'x'? <What>: x, y, z", or without a near name "; <what>: x, y, z"."""
    hint = suggest(name, known)
    choices = ", ".join(known)
    if not hint:
        return f"; {what}: {choices}"
    return f"{hint} {what.capitalize()}: {choices}"


def shorten(value: object, most: int = 80) -> str:
    """Return a value as a message shows it: on one line, and never long, whatever stands in a file."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of about {round(value.bit_length() * 0.30103):,} digits"
    if isinstance(value, str | bytes):
        value = value[:most]
    try:
        # lists of thousands, and lists within lists, are cut before they become text
        if isinstance(value, list | tuple | dict):
            value = _cut(value, 4)
        shown = ascii(value)
    except Exception:  # an object of whatever class may do anything where it is shown
        return f"a {type(value).__name__}"
    if "\n" in shown:  # as in an array
        shown = " ".join(shown.split())
    if len(shown) > most:
        return f"{shown[:most]}..."
    return shown


def _cut(value: object, depth: int) -> object:
    """Return a value with the first few of its parts, so many levels deep."""
    if isinstance(value, str | bytes):
        return value[:80]
    if isinstance(value, int) and value.bit_length() > 256:
        return shorten(value)
    if not isinstance(value, list | tuple | dict):
        return value
    if depth == 0:
        return type(value)()
    if isinstance(value, dict):
        first = islice(value.items(), 4)
        return {shorten(key, 40).strip("'"): _cut(item, depth - 1) for key, item in first}
    return type(value)(_cut(item, depth - 1) for item in value[:8])


def tell_syntax(error: Exception) -> str:
    """Return why a text is no JSON or YAML, in one line; Python's words for lists without end differ by its version."""
    if isinstance(error, RecursionError):
        return "lists within lists without end"
    return " ".join(str(error).split())


def tell_count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with what it counts: 1 image, 1,200 images.

    Args:
        number: How many.
        one: What a single one is called.
        many: What several are called; None adds an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def list_values(values: Mapping[str, object]) -> str:
    """Return numbers or settings as "name value, name value"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def list_some(names: Sequence[str] | frozenset[str], most: int = 3) -> str:
    """Return the first names, sorted, and how many more there are."""
    first = ", ".join(printable(name) for name in sorted(names)[:most])
    if len(names) <= most:
        return first
    return f"{first} and {len(names) - most} more"


def printable(path: str | Path) -> str:
    """Return a path with bytes that are no text escaped.

    Python reads them as surrogates, which no terminal or file would take.
    """
    return str(path).encode("utf-8", "backslashreplace").decode()
