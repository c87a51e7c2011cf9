"""Which images: folders, lists, shards, named sets and tables, and their division.

What is read past (hidden folders, files that are no images) or decided for the user (a held-out part) is never silent:
every source carries notes for the caller to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import order
from vitrail.config.sections import DataSection
from vitrail.data.folders import find_splits, list_folder, note_hidden, scan, visible_folders
from vitrail.data.lists import list_rows, read_list
from vitrail.data.manifest import TRAIN, VAL, Manifest, cache_file, list_images, load_manifest, open_shards
from vitrail.data.named_sets import NAMED_SETS, open_named
from vitrail.data.roster import Roster
from vitrail.data.shards import INDEX, ShardSource, has_shards
from vitrail.data.sources import FileSource, Source
from vitrail.data.splits import UNASSIGNED, Division, divide, held_out
from vitrail.data.tables.hub import is_hf, open_hf
from vitrail.data.tables.rows import groups_of
from vitrail.errors import ConfigError, DataError, VitrailError, closest, few, printable
from vitrail.files import files_of
from vitrail.images.pixels import PixelFormat

DIVISION = ("val_fraction", "folds", "fold", "group_regex")
"""Settings of how images are divided; they hold wherever the images lie."""

Look = Callable[[Manifest, Path], Manifest]


@dataclass(frozen=True)
class Data:
    """What a training run reads."""

    train: Source
    val: Source
    manifest: Manifest | None = None
    """Of images in folders, shards or a list."""
    is_divided: bool = False
    """Whether images to validate with were held out of those to train on."""
    validation: NDArray[np.int64] | None = None
    """Where the images to validate with stand in the manifest."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, the same in both parts."""
        return self.train.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, each once."""
        return tuple(dict.fromkeys(self.train.notes + self.val.notes))

    def roster(self) -> Roster:
        """Return what the images to validate with are known again by, one by one."""
        if self.manifest is None:
            return Roster.of(self.val, read=groups_of(self.val) is None)  # or each would take much to read
        return Roster.of(self.val, self.manifest.content[self.validation], self.manifest.bytes[self.validation])


def open_data(section: DataSection, look: Look | None = None) -> Data:
    """Find the training and validation images of a folder, of shards, of a list or of a named set.

    Args:
        section: Which, and how they are divided.
        look: Reads the images that a manifest knows only by name.

    Raises:
        ConfigError: Unknown name, or settings at odds.
        DataError: Folders that are not as they should be; a set that is missing or cannot be fetched.
    """
    data = _open(section, look)
    _check_order(section, data.train)
    if not data.is_divided:
        _refuse_division(section, data.val.description, data.manifest is not None and data.manifest.packed is not None)
    return data


def _open(section: DataSection, look: Look | None = None) -> Data:
    _check_settings(section)
    if section.name is not None:
        train, val = _open_set(section)
        assert train is not None
        return Data(train, val) if val is not None else Data(*_divided(section, train), is_divided=True)
    manifest, problems = _listed(section, look)
    if problems:
        raise DataError(problems[0])
    train, val, chosen = _parts(manifest, _division(section), section.bad_files == "quarantine")
    return Data(train, val, manifest, is_divided=not (manifest.part == VAL).any(), validation=chosen)


def open_manifest(section: DataSection, look: Look | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """List the images of a root or a list, with what is known of them already, or take a manifest as it is.

    Returns:
        The manifest, and what forbids to train on it.

    Raises:
        ConfigError: Images are to be divided that are divided already.
        DataError: There are no images to train on, or no such manifest.
    """
    manifest, problems = _listed(section, look)
    _check_order(section, manifest.source(TRAIN))
    if (manifest.part == VAL).any():
        _refuse_division(section, manifest.source(VAL).description, manifest.packed is not None)
    return manifest, problems


def _listed(section: DataSection, look: Look | None = None) -> tuple[Manifest, tuple[str, ...]]:
    root, file = _root(section), None if section.manifest is None else Path(section.manifest).expanduser()
    listing = None
    if section.list is not None:
        listing, listed = list_rows(section), Path(section.list).expanduser()
    else:
        if root is None:
            assert file is not None
            if file.name != INDEX:
                return _as_written(file, _pixels(section)), ()
            root, file = file.parent, None
        listed = root
        if not has_shards(root):
            listing = list_folder(root, section.train_split, section.val_split, section.class_order)
    place = file or cache_file(listed, section.train_split, section.val_split)
    try:
        known = load_manifest(place) if place.exists() else None
    except DataError:
        if file is not None:
            raise  # it may be another file, named by mistake
        known = None  # what the cache had is found again
    if listing is not None:
        manifest, problems = list_images(listing, known, _pixels(section)), listing.problems
        if file is not None and known is not None:
            _refuse_other(file, known, manifest, listed)
    else:
        manifest, problems = open_shards(listed, known, _pixels(section)), ()
        _check_packed(section, manifest)
    if not problems and not (manifest.part == VAL).any():
        division, source = _division(section), manifest.source(TRAIN)
        kept = manifest.fold if manifest.division == division.key else None
        manifest = replace(manifest, fold=divide(source, division, kept), division=division.key)
        is_new = listing is not None and (kept is None or (kept == UNASSIGNED).any())
        if is_new and (look is None or manifest.inspected.all()):  # otherwise it is kept with what is read
            manifest = _keep(manifest, place)
    return (look(manifest, place) if look is not None else manifest), problems


def _refuse_other(file: Path, known: Manifest, manifest: Manifest, listed: Path) -> None:
    """Refuse to write the images that are listed into a manifest of others."""
    if known.packed is not None:
        raise DataError(
            f"data.manifest {file}: is the index of shards, which nothing else can stand in; name another file, or "
            f"read the shards with data.root={printable(file.parent)}"
        )
    there = known.places(manifest)
    same = there >= 0
    if known.root != manifest.root:
        same[same] = known.bytes[there[same]] == manifest.bytes[same]
    if not same.any():
        raise DataError(
            f"data.manifest {file}: lists {len(known):,} images of {printable(known.root)}, none of which is in "
            f"{printable(listed)}; name another file for these, or delete it"
        )


def _as_written(file: Path, pixels: PixelFormat) -> Manifest:
    """Take a list as it is, if its images were looked at as they are to be read."""
    manifest = load_manifest(file)
    if (read := manifest.pixels) != pixels:
        raise ConfigError(
            f"data.manifest {file}: its images were read with data.channels={read.channels} data.bits={read.bits}; "
            "set the same, or give data.root too, to read them anew"
        )
    return manifest


def _keep(manifest: Manifest, place: Path) -> Manifest:
    """Write down how images are divided, so that files that are added later change the side of none."""
    try:
        manifest.save(place)
    except (VitrailError, OSError) as error:
        told = f"{error}; files that are added may change which images are held out"
        return replace(manifest, notes=(*manifest.notes, told))
    return manifest


def open_split(section: DataSection, split: Literal["train", "val", "all"]) -> tuple[Source, tuple[str, ...]]:
    """Find one part of a folder, of shards, of a list or of a named set, with its notes: the images of `open_data`.

    A division that is set where there is a part to validate with is no error here but a note: it may come from a weight
    file that was trained on other images.

    Args:
        section: Which; a root that has `val_split` alone will do for split "val".
        split: "all" is for class folders and lists that are not divided into splits.

    Raises: As `open_data` does.
    """
    source, is_divided = _open_split(section, split)
    _check_order(section, source)
    unused = [] if is_divided or split == "all" else _dividing(section)
    told = f"{source.description}: stands as it is, {' '.join(unused)} divides nothing"
    return source, (*source.notes, told) if unused else source.notes


def files_read(section: DataSection, source: Source) -> Iterator[Path]:
    """Yield the files that images are read from, with the list or the manifest that names them."""
    yield from (Path(file).expanduser() for file in (section.list, section.manifest) if file is not None)
    if section.name is not None and is_hf(section.name):
        yield from files_of(Path(section.name.removeprefix("hf:")).expanduser())
    if isinstance(source, ShardSource):
        yield from (source.root / name for name in (INDEX, *(shard.name for shard in source.places.shards)))
    elif isinstance(source, FileSource):
        yield from map(source.path, range(len(source)))


def _open_split(section: DataSection, split: Literal["train", "val", "all"]) -> tuple[Source, bool]:
    """Return the images, and whether some were held out of others to get them."""
    _check_settings(section)
    root = _root(section)
    if section.name is not None:
        train, val = _open_set(section, needs_train=split != "val")
        if split == "all" and val is not None:
            raise ConfigError(f"evaluate.split all: {section.name} has a training and a test part; choose train or val")
        is_divided = False
        if split != "all" and val is None and train is not None:
            train, val = _divided(section, train)
            is_divided = True
        source = val if split == "val" else train
        assert source is not None
        return source, is_divided
    if section.list is not None and section.bad_files != "quarantine":
        # what needs no division is taken as it stands: a list may have rows to evaluate on alone
        listed = read_list(section)
        if split == "all" and listed.is_divided:
            raise ConfigError(f"evaluate.split all: {section.list} is divided into splits; choose train or val")
        source = listed.val if split == "val" else listed.train if split == "all" or listed.val is not None else None
        if source is not None:
            return source, False
    elif root is not None and section.bad_files != "quarantine" and not has_shards(root):
        # what needs no division is not listed whole: a validation folder may lie alone
        train, val = find_splits(root, section.train_split, section.val_split)
        if split == "all" and root not in (train, val):
            raise ConfigError(f"evaluate.split all: {root} is divided into splits; choose train or val")
        folder = val if split == "val" else train if split == "all" or val is not None else None
        if folder is not None:
            return note_hidden(root, scan(folder, class_order=section.class_order)), False
        if train is None:
            raise DataError(
                f"data.root {root}: has no {section.train_split}/; its folders: {few(visible_folders(root))}"
            )
    elif split == "all":
        manifest, _ = _listed(section)
        if (manifest.part == VAL).any():
            raise ConfigError(
                f"evaluate.split all: {section.list or manifest.root} is divided into splits; choose train or val"
            )
        source = manifest.source(TRAIN)
        return _readable(manifest, source) if section.bad_files == "quarantine" else source, False
    data = _open(section)
    return data.train if split == "train" else data.val, data.is_divided


def _open_set(section: DataSection, needs_train: bool = True) -> tuple[Source | None, Source | None]:
    """Return the training and the validation images of a set with a name, None for what it does not have."""
    assert section.name is not None
    if is_hf(section.name):
        return open_hf(section, needs_train)
    return open_named(section.name, _root(section), section.download)


def _divided(section: DataSection, source: Source) -> tuple[Source, Source]:
    """Return the images to train on, and those held out."""
    division = _division(section)
    return held_out(source, division, divide(source, division))


def _parts(manifest: Manifest, division: Division, quarantine: bool) -> tuple[Source, Source, NDArray[np.int64]]:
    """Return a manifest's training and validation images, and where the latter stand in it."""
    if (manifest.part == VAL).any():
        parts = [(manifest.source(TRAIN), manifest.part == TRAIN), (manifest.source(VAL), manifest.part == VAL)]
    else:
        if manifest.division != division.key:
            raise ConfigError(
                f"data.manifest: its images are divided by {manifest.division}, the settings say {division.key}; give "
                "data.root or data.list too, to divide them anew"
            )
        source = manifest.source(TRAIN)
        train, val = held_out(source, division, manifest.fold)
        parts = [(train, manifest.fold != division.fold), (val, manifest.fold == division.fold)]
    validation = parts[1][1]
    if not quarantine:
        return parts[0][0], parts[1][0], np.flatnonzero(validation)
    train, val = (_readable(manifest, *part) for part in parts)
    return train, val, np.flatnonzero(validation & ~manifest.unreadable)


def _readable(manifest: Manifest, source: Source, chosen: NDArray[np.bool_] | None = None) -> Source:
    """Return a part of a manifest's images, all by default, less those that cannot be read."""
    indices = np.arange(len(manifest)) if chosen is None else np.flatnonzero(chosen)
    bad = manifest.unreadable[indices]
    if bad.all():
        raise DataError(f"{source.description}: none of its {len(source)} images can be read")
    note = (
        f"{source.description}: {bad.sum()} images that cannot be read are left out, the first is "
        f"{manifest.name(int(indices[np.argmax(bad)]))}"
    )
    return source.take(~bad, source.description, (*source.notes, *([note] if bad.any() else [])))


def _dividing(section: DataSection) -> list[str]:
    """Return the settings that say how images are to be divided."""
    usual = DataSection()
    given = {name: getattr(section, name) for name in DIVISION}
    return [f"data.{name}={value}" for name, value in given.items() if value != getattr(usual, name)]


def _refuse_division(section: DataSection, val: str, is_packed: bool) -> None:
    """Refuse to divide images that have a part to validate with."""
    if given := _dividing(section):
        how = "pack the training folder alone" if is_packed else "set data.val_split=null"
        raise ConfigError(
            f"{' '.join(given)}: there is a part to validate with, {val}, so that nothing is divided; {how} to divide "
            "the training images, or drop it"
        )


def _check_order(section: DataSection, source: Source) -> None:
    """Refuse an order of classes that the images cannot follow: another is declared, or was settled in packing them."""
    if section.class_order is None:
        return
    wanted = [source.classes[index] for index in order(source.classes, section.class_order)]
    if differing := [(i, *pair) for i, pair in enumerate(zip(source.classes, wanted, strict=True)) if len({*pair}) > 1]:
        index, own, other = differing[0]
        raise ConfigError(
            f"data.class_order {section.class_order}: {source.description} has an order of its own, in which index "
            f"{index} is {printable(own)} and not {printable(other)}; set data.class_order=null"
        )


def _check_packed(section: DataSection, manifest: Manifest) -> None:
    """Refuse settings that shards cannot follow, as what is in them was settled when they were packed."""
    if section.manifest is not None and section.root is not None:
        raise ConfigError(
            f"data.manifest {section.manifest}: {manifest.root} holds shards, which have a list of their own; drop it"
        )
    train, val = manifest.folders
    for key, folder in (("train_split", train), ("val_split", val if (manifest.part == VAL).any() else "")):
        given = getattr(section, key)
        if key == "train_split" and not folder:
            continue  # as where class folders lie at the top
        if given not in (folder, folder or None, getattr(DataSection, key)):
            raise ConfigError(
                f"data.{key} is {given or 'null'}, and the shards of {manifest.root} were packed "
                f"{f'with {folder}' if folder else 'without one'}; drop it, or pack the folder anew"
            )


def _check_settings(section: DataSection) -> None:
    name, root = section.name, section.root
    if name is not None and not is_hf(name) and name not in NAMED_SETS:
        known = ", ".join(NAMED_SETS)
        raise ConfigError(
            f"data.name {name!r}: unknown{closest(name, NAMED_SETS)}; known sets: {known}, and hf:OWNER/NAME"
        )
    if name == "digits" and root is not None:
        raise ConfigError(
            f"data.root {root}: data.name is digits, which comes with scikit-learn and has no folder; for your own "
            "images add data.name=null, or name another recipe"
        )
    if name is not None and section.bad_files == "quarantine":
        raise ConfigError(
            f"data.bad_files=quarantine: leaves out what the check has found, and data.name {name} is not checked; set "
            "skip, which counts and names what cannot be read, or error"
        )
    if name is not None and section.manifest is not None:
        raise ConfigError(
            f"data.manifest {section.manifest}: is for images in folders, lists and shards; data.name is {name}"
        )
    if name is not None and section.list is not None:
        raise ConfigError(f"data.list {section.list}: is for images in files; data.name is {name}; add data.name=null")
    if name is None and root is None and section.manifest is None and section.list is None:
        raise ConfigError("data.root is not set; give the folder with your images, or data.name=digits")
    if name not in (None, "digits") and not is_hf(name) and root is None:
        raise ConfigError(
            f"data.root is not set; give the folder where {name} lies or, with data.download=true, will lie"
        )


def _pixels(section: DataSection) -> PixelFormat:
    return PixelFormat(section.channels, section.bits)


def _root(section: DataSection) -> Path | None:
    return None if section.root is None else Path(section.root).expanduser()


def _division(section: DataSection) -> Division:
    return Division(section.val_fraction, section.folds, section.fold, section.group_regex)
