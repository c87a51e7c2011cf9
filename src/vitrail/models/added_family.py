"""What is wrong with a family that a user's own program adds, said before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vitrail.errors import shorten
from vitrail.models.family import Family, ModelConfig, Variant

NAME = re.compile(r"[a-z0-9][a-z0-9_.]*")
"""What families and models may be called, as the names stand in commands, files and addresses."""
WANTED = "it must be small letters, digits, _ and ."


def find_fault(family: Family[Any], prefixes: tuple[str, ...]) -> str:
    """Return what is wrong with a family as a clause; empty where nothing is.

    Args:
        family: What is to be added.
        prefixes: What the names of other libraries' models begin with, such as `timm:`.
    """
    return next(_faults_of(family, prefixes), "")


def _faults_of(family: Family[Any], prefixes: tuple[str, ...]) -> Iterator[str]:
    if not _is_name(family.name):
        yield f"name is {shorten(family.name)}; {WANTED}"
    if not callable(family.model):
        yield f"model is {shorten(family.model)}; it must be what builds a model of a configuration"
    if not isinstance(family.variants, Mapping) or not family.variants:
        yield f"variants is {shorten(family.variants)}; it must name at least one model"
        return
    for name in (*family.variants, *family.aliases):
        if isinstance(name, str) and name.startswith(prefixes):
            yield f"{name} begins as models of another library do; name it differently"
    for name, variant in family.variants.items():
        if not _is_name(name):
            yield f"variants has a model called {shorten(name)}; {WANTED}"
        elif not isinstance(variant, Variant) or not isinstance(variant.config, ModelConfig):
            yield f"variants[{name!r}] is {shorten(variant)}; it must be a Variant with a configuration"
        else:
            yield from (f"variants[{name!r}]: {fault}" for fault in _faults_of_facts(variant))
            for key in family.tiny:
                if not variant.config.has_option(key):
                    yield f"tiny has {shorten(key)}, which is no field of {name}'s configuration"
    for theirs, ours in family.aliases.items():
        if ours not in family.variants:
            yield f"aliases leads {shorten(theirs)} to {shorten(ours)}, which is none of its models"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def _faults_of_facts(variant: Variant[Any]) -> Iterator[str]:
    """Yield what is wrong with what a variant says of images and of its accuracy."""
    for field in ("mean", "std"):
        values = getattr(variant, field)
        if len(values) not in (3, variant.config.in_channels):
            yield f"{field} has {len(values)} numbers; it must have one for each channel of its images"
    if min(variant.std, default=1) <= 0:
        yield f"std is {variant.std}; it must be above 0"
    if not 0 < variant.crop <= 1:
        yield f"crop is {variant.crop}; it must be above 0 and at most 1"
    for field in ("top1", "top5"):
        accuracy = getattr(variant, field)
        if accuracy is not None and not 0 <= accuracy <= 100:
            yield f"{field} is {accuracy}; it must be from 0 to 100 %"
