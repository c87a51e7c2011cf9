"""Which images: folders and named sets, and their division.

What is read past (hidden folders, files that are no images) or decided for the user (a held-out part) is never silent:
every source carries notes for the caller to show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrail.data.folders import find_splits, note_hidden, one_class, scan, visible_folders
from vitrail.data.named_sets import NAMED_SETS, open_named
from vitrail.data.sources import Source, few
from vitrail.data.splits import divide
from vitrail.errors import ConfigError, DataError, closest


@dataclass(frozen=True)
class Data:
    """What a training run reads."""

    train: Source
    val: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, the same in both parts."""
        return self.train.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, each once."""
        return tuple(dict.fromkeys(self.train.notes + self.val.notes))


def open_data(
    name: str | None,
    root: str | Path | None,
    *,
    train_split: str = "train",
    val_split: str | None = "val",
    val_fraction: float = 0.2,
    download: bool = False,
) -> Data:
    """Find the training and validation images of a folder or a named set.

    Args:
        name: A named set, or None to read folders.
        root: Folder with `train_split` and `val_split`, or with class folders directly, of which a part is then held
            out; for a named set, where its files lie.
        train_split: Name of the folder to train on.
        val_split: Name of the folder to validate on; None holds out a part of the training folder.
        val_fraction: Share of each class that is held out, chosen by a hash of the file names.
        download: Fetch a named set that is not there.

    Raises:
        ConfigError: Unknown name, or settings at odds.
        DataError: Folders that are not as they should be; a set that is missing or cannot be fetched.
    """
    root = _check_settings(name, root, val_fraction)
    if name is not None:
        train, val = open_named(name, root, download)
        return Data(train, val) if val is not None else Data(*divide(train, val_fraction))
    assert root is not None
    train_folder, val_folder = find_splits(root, train_split, val_split)
    if train_folder is None:
        raise DataError(
            f"data.root {root}: has {val_split}/ but no {train_split}/ to train on; set data.train_split to one of its "
            f"folders: {few(visible_folders(root))}"
        )
    train = note_hidden(root, scan(train_folder))
    if len(train.classes) == 1:
        raise DataError(one_class(root, train_folder, train.classes[0], train_split))
    if val_folder is None:
        return Data(*divide(train, val_fraction))
    val = scan(val_folder)
    missing = [c for c in train.classes if c not in set(val.classes)]
    extra = [c for c in val.classes if c not in set(train.classes)]
    if missing or extra:
        wrong = [f"missing from {val_split}/: {few(missing)}"] * bool(missing)
        wrong += [f"only in {val_split}/: {few(extra)}"] * bool(extra)
        raise DataError(
            f"data.root {root}: {val_split}/ has other classes than {train_split}/ ({'; '.join(wrong)}); give both the "
            "same class folders, or set data.val_split=null to hold out a part of the training images"
        )
    return Data(train, val)


def open_split(
    name: str | None,
    root: str | Path | None,
    split: Literal["train", "val", "all"],
    *,
    train_split: str = "train",
    val_split: str | None = "val",
    val_fraction: float = 0.2,
    download: bool = False,
) -> tuple[Source, tuple[str, ...]]:
    """Find one part of a folder or a named set, with its notes: the same images as `open_data` gives.

    Args:
        name: As for `open_data`, like all the rest.
        root: A folder that has `val_split` alone will do for split "val".
        split: "all" is for class folders that are not divided into splits.
        train_split: Name of the folder to train on.
        val_split: Name of the folder to validate on.
        val_fraction: Share of each class that is held out.
        download: Fetch a named set that is not there.
    """
    root = _check_settings(name, root, val_fraction)
    if name is not None:
        train, val = open_named(name, root, download)
        if split == "all" and val is not None:
            raise ConfigError(f"evaluate.split all: {name} has a training and a test part; choose train or val")
    else:
        assert root is not None
        train_folder, val_folder = find_splits(root, train_split, val_split)
        if split == "all" and root not in (train_folder, val_folder):
            raise ConfigError(f"evaluate.split all: {root} is divided into splits; choose train or val")
        if split == "val" and val_folder is not None:
            val = note_hidden(root, scan(val_folder))
            return val, val.notes
        if train_folder is None:
            raise DataError(f"data.root {root}: has no {train_split}/; its folders: {few(visible_folders(root))}")
        train, val = note_hidden(root, scan(train_folder)), None
        if split == "train" and val_folder is not None:
            return train, train.notes
    if split == "all":
        return train, train.notes
    train, val = (train, val) if val is not None else divide(train, val_fraction)
    chosen = train if split == "train" else val
    return chosen, chosen.notes


def _check_settings(name: str | None, root: str | Path | None, val_fraction: float) -> Path | None:
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}; it must be above 0 and below 1")
    if name is not None and name not in NAMED_SETS:
        known = ", ".join(NAMED_SETS)
        raise ConfigError(f"data.name {name!r}: unknown{closest(name, NAMED_SETS)}; known sets: {known}")
    if name == "digits" and root is not None:
        raise ConfigError(
            f"data.root {root}: data.name is digits, which comes with scikit-learn and has no folder; for your own "
            "images add data.name=null, or name another recipe"
        )
    if name is None and root is None:
        raise ConfigError("data.root is not set; give the folder with your images, or data.name=digits")
    if name not in (None, "digits") and root is None:
        raise ConfigError(
            f"data.root is not set; give the folder where {name} lies or, with data.download=true, will lie"
        )
    return None if root is None else Path(root).expanduser()
