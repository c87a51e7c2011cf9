"""The space that MindSpore's tune_params.py searches, read from optimize.yaml into a space of ours. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.config.resolve import Layer
from vitrail.errors import ConfigError, shorten, suggest

SPACE = "parameters"
"""Key of their file under which the space stands."""
FORMS = ("bounds", "range", "choice")
"""The three ways in which their file writes the values of a key."""
TRIAL = {
    "train": {"epochs": 5},
    "schedule": {"name": "constant", "warmup_epochs": 0.0},
}
"""What their program trains each trial with, whatever the file says: five epochs at a constant
rate."""
TRIALS = 10
"""Trials that their program makes by default."""


def read_parameters(content: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the space of one of their files in the form of ours, by their keys.

    Args:
        content: Keys and values of the file.
        origin: Name of the file, for messages.

    Raises:
        ConfigError: Entries that are of none of their three forms.
    """
    parameters = content.get(SPACE)
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(
            f"{origin}: has no {SPACE}, the space to search; add it, or give a space of ours as a "
            "file behind it"
        )
    space: dict[str, Any] = {}
    problems = []
    for key, entry in parameters.items():
        try:
            space[str(key)] = _read_entry(entry)
        except ValueError as error:
            problems.append(f"{origin}: {SPACE}.{key}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return space


def trial_settings(origin: str) -> Layer:
    """Return what their program trains each trial with, as a layer over the file."""
    return Layer(f"{origin}: tune_params.py", TRIAL)


def _read_entry(entry: Any) -> Any:
    """Return one of their entries in the form of ours; a ValueError says what is wrong with it."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"is {shorten(entry)}; it must have one of {', '.join(FORMS)}")
    for part in entry:
        if part not in (*FORMS, "kind"):
            near = suggest(str(part), (*FORMS, "kind")) or f"; it has {', '.join(FORMS)} and kind"
            raise ValueError(f"{part}: unknown key{near}")
    given = [form for form in FORMS if form in entry]
    if len(given) != 1:
        raise ValueError(
            f"has {' and '.join(given) or 'no values'}; give one of {', '.join(FORMS)}"
        )
    values = entry[given[0]]
    length = {"bounds": 2, "range": 3, "choice": None}[given[0]]
    if not isinstance(values, list) or length not in (None, len(values)):
        wanted = {"bounds": "[low, high]", "range": "[low, high, step]", "choice": "a list"}
        raise ValueError(f"{given[0]} is {shorten(values)}; it must be {wanted[given[0]]}")
    if given[0] == "choice":
        return list(values)
    kind = entry.get("kind", "uniform")
    if kind not in ("log", "uniform"):
        raise ValueError(f"kind is {shorten(kind)}; it must be log or uniform")
    read: dict[str, Any] = {"low": values[0], "high": values[1]}
    if given[0] == "range":
        read["step"] = values[2]
    if kind == "log":
        read["log"] = True
    return read
