"""Which tensor names look like those of a model's weights, in any dialect, and what stands before them.

The pattern of a name is the name with `#` for each number: `blocks.3.norm1.weight` has
`blocks.#.norm1.weight`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch

from vitrail.models.dialects import write_names
from vitrail.models.family import Family
from vitrail.models.registry import FAMILIES, build_config, find_variant
from vitrail.weights.config_fields import find_differences


def is_wrapper(segment: str) -> bool:
    """Say whether a module's name is one that torch and its like give what they wrap: `module`, or a private one."""
    return segment == "module" or segment.startswith("_")


def join_prefix(segments: Iterable[str]) -> str:
    """Return a prefix of names, with a dot behind each of its parts."""
    return "".join(f"{segment}." for segment in segments)


def split_prefix(name: str, library_model: str = "") -> tuple[str, str] | None:
    """Return the prefix of a name and the pattern of what is behind it, where that is a weight's name in a dialect.

    Args:
        name: Of a tensor.
        library_model: The model of a library that weights are looked for of; empty for our own.
    """
    segments = name.split(".")
    inner = [index for index, segment in enumerate(segments) if not is_wrapper(segment)]
    for first in range(len(inner)):
        pattern = _pattern([segments[index] for index in inner[first:]])
        if pattern in _models_by_pattern(_families(library_model)):
            return join_prefix(segments[: inner[first]]), pattern
    return None


def is_weight(name: str, library_model: str) -> bool:
    """Say whether a name, with no prefix, is that of a weight of a library's model."""
    split = split_prefix(name, library_model)
    return split is not None and not split[0]


def are_half_a_model(patterns: Iterable[str], library_model: str = "") -> bool:
    """Say whether patterns are at least half of those that the weights of some model have."""
    counts: Counter[int] = Counter()
    families = _families(library_model)
    for pattern in patterns:
        counts.update(_models_by_pattern(families)[pattern])
    wholes = _patterns_of_model(families)
    return any(2 * count >= wholes[number] for number, count in counts.items())


def _families(library_model: str) -> tuple[Family[Any], ...]:
    """Return the families that weights are looked for of."""
    return (find_variant(library_model)[0],) if library_model else tuple(FAMILIES)


@lru_cache(maxsize=8)
def _models_by_pattern(families: tuple[Family[Any], ...]) -> Mapping[str, frozenset[int]]:
    """Return the patterns of weights in each dialect, with the models that have each.

    A model is one kind of names of one dialect, and is known by its number.
    """
    models: dict[str, set[int]] = {}
    number = 0
    for family in families:
        for config, our_names in _tiny_models(family):
            for dialect in family.dialects:
                if find_differences(config, dialect.only):
                    continue
                links, _ = write_names(our_names, dialect)
                for link in links:
                    for name in link.theirs:
                        # a project's own prefix is one like others, and the head beside it is found
                        # as others are
                        pattern = _pattern(name.removeprefix(dialect.prefix).split("."))
                        models.setdefault(pattern, set()).add(number)
                number += 1
    return {pattern: frozenset(numbers) for pattern, numbers in models.items()}


@lru_cache(maxsize=8)
def _patterns_of_model(families: tuple[Family[Any], ...]) -> Mapping[int, int]:
    """Return how many patterns the names of each model have."""
    counts: Counter[int] = Counter()
    for numbers in _models_by_pattern(families).values():
        counts.update(numbers)
    return counts


def _tiny_models(family: Family[Any]) -> list[tuple[Any, list[str]]]:
    """Return a small model's configuration and names for each kind that a family has."""
    configs = [build_config(name, **family.tiny) for name in family.variants]
    different = {repr(config): config for config in configs}.values()
    # nobody's draws are to differ because a file was opened
    with torch.device("meta"):
        return [(config, [*family.model(config).state_dict()]) for config in different]


def _pattern(segments: list[str]) -> str:
    return ".".join("#" if segment.isdigit() else segment for segment in segments)
