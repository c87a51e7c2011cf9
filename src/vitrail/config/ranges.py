"""Range checks of numeric settings, each problem said as one clause. No torch."""

from __future__ import annotations

from typing import Any


def find_out_of_range(section: Any, **bounds: tuple[float, float | None]) -> list[str]:
    """Say which settings of a section are outside their bounds, which belong to the range.

    Args:
        section: A section of settings; those that are null are passed over.
        **bounds: Smallest and largest value of each setting; a largest of None is no limit.
    """
    problems = []
    for name, (low, high) in bounds.items():
        value = getattr(section, name)
        if value is None:
            continue
        if not low <= value and high is None:
            problems.append(f"{name} is {value}; it must be at least {low}")
        elif high is not None and not low <= value <= high:
            problems.append(f"{name} is {value}; it must be from {low} to {high}")
    return problems


def find_not_positive(section: Any, *names: str) -> list[str]:
    """Say which of the named settings of a section are zero or negative; null is passed over."""
    problems = []
    for name in names:
        value = getattr(section, name)
        if value is not None and value <= 0:
            problems.append(f"{name} is {value}; it must be above 0")
    return problems
