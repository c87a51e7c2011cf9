"""Refuse settings of the section data that contradict each other, or that the images cannot follow."""

from __future__ import annotations

from vitrail.classes.names import sort_classes
from vitrail.config.sections import DataSection
from vitrail.data.manifest import Manifest
from vitrail.data.named_sets import NAMED_SETS
from vitrail.data.sources import Source
from vitrail.data.tables.hub import is_hf
from vitrail.errors import ConfigError, printable, suggest

DIVISION = ("val_fraction", "folds", "fold", "group_regex")
"""Settings of how images are split, wherever they lie."""


def find_dividing_settings(section: DataSection) -> list[str]:
    """Return the settings of how images are split that are not the usual ones."""
    usual = DataSection()
    given = {name: getattr(section, name) for name in DIVISION}
    return [
        f"data.{name}={value}" for name, value in given.items() if value != getattr(usual, name)
    ]


def refuse_division(section: DataSection, val: str, is_packed: bool) -> None:
    """Refuse settings of how images are split, where there are validation images."""
    given = find_dividing_settings(section)
    if given:
        how = "pack the training folder alone" if is_packed else "set data.val_split=null"
        raise ConfigError(
            f"{' '.join(given)}: there is a part to validate with, {val}, so that nothing is "
            f"divided; {how} to divide the training images, or drop it"
        )


def check_order(section: DataSection, source: Source) -> None:
    """Refuse an order of classes that the images cannot follow: another is declared, or was settled in packing them."""
    if section.class_order is None:
        return
    wanted = [source.classes[index] for index in sort_classes(source.classes, section.class_order)]
    for index, (own, other) in enumerate(zip(source.classes, wanted, strict=True)):
        if own != other:
            raise ConfigError(
                f"data.class_order {section.class_order}: {source.description} has an order of its "
                "own, in which index "
                f"{index} is {printable(own)} and not {printable(other)}; set data.class_order=null"
            )


def check_packed(section: DataSection, manifest: Manifest) -> None:
    """Refuse settings that shards cannot follow, as what is in them was settled when they were packed."""
    if section.manifest is not None and section.root is not None:
        raise ConfigError(
            f"data.manifest {section.manifest}: {manifest.root} holds shards, which have a list of "
            "their own; drop it"
        )
    train, val = manifest.folders
    if train:  # it is empty where class folders lie at the top
        _check_packed_split(manifest, "train_split", section.train_split, train)
    if not manifest.has_val:
        val = ""
    _check_packed_split(manifest, "val_split", section.val_split, val)


def _check_packed_split(manifest: Manifest, key: str, given: str | None, folder: str) -> None:
    """Refuse the name of a split that is neither the one that was packed nor the usual one."""
    if given in (folder, folder or None, getattr(DataSection, key)):
        return
    packed = f"with {folder}" if folder else "without one"
    raise ConfigError(
        f"data.{key} is {given or 'null'}, and the shards of {manifest.root} were packed {packed}; "
        "drop it, or pack the folder anew"
    )


def check_settings(section: DataSection) -> None:
    """Refuse settings that contradict each other, or name no images."""
    name, root = section.name, section.root
    if name is not None and not is_hf(name) and name not in NAMED_SETS:
        known = ", ".join(NAMED_SETS)
        raise ConfigError(
            f"data.name {name!r}: unknown{suggest(name, NAMED_SETS)}; for a folder of images, "
            f"data.name=null data.root=FOLDER; known sets: {known}, and hf:OWNER/NAME"
        )
    if name == "digits" and root is not None:
        raise ConfigError(
            f"data.root {root}: data.name is digits, which comes with scikit-learn and has no "
            "folder; for your own images add data.name=null, or train by another recipe"
        )
    if name is not None and section.bad_files == "quarantine":
        raise ConfigError(
            f"data.bad_files=quarantine: leaves out what the check has found, and data.name {name} "
            "is not checked; set skip, which counts and names what cannot be read, or error"
        )
    if name is not None and section.manifest is not None:
        raise ConfigError(
            f"data.manifest {section.manifest}: is for images in folders, lists and shards; "
            f"data.name is {name}"
        )
    if name is not None and section.list is not None:
        raise ConfigError(
            f"data.list {section.list}: is for images in files; data.name is {name}; add "
            "data.name=null"
        )
    if name is None and root is None and section.manifest is None and section.list is None:
        raise ConfigError(
            "data.root is not set; give the folder with your images, or data.name=digits"
        )
    if name not in (None, "digits") and not is_hf(name) and root is None:
        raise ConfigError(
            f"data.root is not set; give the folder where {name} lies or, with data.download=true, "
            "will lie"
        )
