"""Open a data set by the settings of the section data: folders, lists, shards, named sets, tables, and their splits.

Whatever is passed over (hidden folders, files that are no images) or decided for the user (held-out
images) is told: every source carries notes for the caller to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.config.sections import DataSection
from vitrail.data.folders import find_splits, list_folder, note_hidden, scan, visible_folders
from vitrail.data.lists import list_rows, read_list
from vitrail.data.manifest import Manifest, list_images, load_manifest, locate_cache, open_shards
from vitrail.data.named_sets import open_named
from vitrail.data.roster import Roster
from vitrail.data.setting_checks import (
    check_order,
    check_packed,
    check_settings,
    find_dividing_settings,
    refuse_division,
)
from vitrail.data.shards import INDEX, ShardSource, has_shards
from vitrail.data.sources import TRAIN, VAL, FileSource, Source
from vitrail.data.splits import UNASSIGNED, Division, assign_splits, hold_out
from vitrail.data.tables.hub import is_hf, open_hf
from vitrail.data.tables.rows import find_storage_groups
from vitrail.data.unlabelled import PLACE, drop_labels, drop_labels_of, list_unlabelled
from vitrail.errors import ConfigError, DataError, VitrailError, list_some, printable, tell_count
from vitrail.files import files_of
from vitrail.images.pixels import PixelFormat

Split = Literal["train", "val", "all"]
Look = Callable[[Manifest, Path], Manifest]
"""Inspects the images of a manifest that are not inspected yet, and saves it to the file."""


@dataclass(frozen=True)
class Data:
    """The images of a training run."""

    train: Source
    val: Source
    manifest: Manifest | None = None
    """Manifest of images in folders, shards or a list; None for named sets and tables."""
    is_divided: bool = False
    """Whether images to validate with were held out of those to train on."""
    validation: NDArray[np.int64] | None = None
    """Index in the manifest of each validation image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in both splits."""
        return self.train.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user, each once."""
        return tuple(dict.fromkeys(self.train.notes + self.val.notes))

    def roster(self) -> Roster:
        """Return the roster of the validation images."""
        if self.manifest is None:
            # images that are stored in groups would each take much to read
            is_quick = find_storage_groups(self.val) is None
            return Roster.of(self.val, read=is_quick)
        return Roster.of(
            self.val, self.manifest.content[self.validation], self.manifest.bytes[self.validation]
        )


def open_data(section: DataSection, look: Look | None = None) -> Data:
    """Find the training and validation images of a folder, of shards, of a list or of a named set.

    Args:
        section: Which images, and how they are split.
        look: Inspects the images of a manifest; None leaves them as they are.

    Raises:
        ConfigError: Unknown name, or settings at odds.
        DataError: Folders that are not as they should be; a set that is missing or cannot be
            fetched.
    """
    data = _open(section, look)
    check_order(section, data.train)
    if not data.is_divided:
        is_packed = data.manifest is not None and data.manifest.packed is not None
        refuse_division(section, data.val.description, is_packed)
    return data


def _open(section: DataSection, look: Look | None = None) -> Data:
    check_settings(section)
    if section.name is not None:
        train, val = _open_set(section)
        assert train is not None
        if val is not None:
            return Data(train, val)
        return Data(*_divide(section, train), is_divided=True)
    manifest, problems = _list_images(section, look)
    if problems:
        raise DataError(problems[0])
    train, val, chosen = _split_manifest(
        manifest, _division(section), section.bad_files == "quarantine"
    )
    return Data(train, val, manifest, is_divided=not manifest.has_val, validation=chosen)


def open_manifest(
    section: DataSection, look: Look | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    """List the images of a root or a list, with what is known of them already, or take a manifest as it is.

    Returns:
        The manifest, and error messages that forbid to train on it.

    Raises:
        ConfigError: Images are to be split that are split already.
        DataError: There are no images to train on, or no such manifest.
    """
    manifest, problems = _list_images(section, look)
    check_order(section, manifest.source(TRAIN))
    if manifest.has_val:
        refuse_division(section, manifest.source(VAL).description, manifest.packed is not None)
    return manifest, problems


def _list_images(
    section: DataSection, look: Look | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest of a root, a list or a manifest file, and error messages that forbid to train on it."""
    root = _root(section)
    file = None
    if section.manifest is not None:
        file = Path(section.manifest).expanduser()
    if section.list is None and root is None:
        assert file is not None
        if file.name != INDEX:
            written = _take_as_written(file, _pixels(section))
            return (drop_labels_of(written) if section.unlabelled else written), ()
        # the index of shards stands for their folder
        root, file = file.parent, None

    # what is there now
    if section.list is not None:
        listing = list_rows(section)
        listed = Path(section.list).expanduser()
    else:
        assert root is not None
        listing = None
        listed = root
        if section.unlabelled and not has_shards(root):
            listing = list_unlabelled(root)
        elif not has_shards(root):
            listing = list_folder(root, section.train_split, section.val_split, section.class_order)

    # what is known of it
    splits = PLACE if section.unlabelled else (section.train_split, section.val_split)
    place = file or locate_cache(listed, *splits)
    known = _load_known(place, is_cache=file is None)
    if listing is not None:
        manifest = list_images(listing, known, _pixels(section))
        problems = listing.problems
        if file is not None and known is not None:
            _refuse_other(file, known, manifest, listed)
    else:
        manifest = open_shards(listed, known, _pixels(section))
        problems = ()
        check_packed(section, manifest)
        if section.unlabelled:
            manifest = drop_labels_of(manifest)

    if not problems and not manifest.has_val:
        manifest, is_new = _assign_folds(manifest, _division(section))
        # otherwise `look` saves it, with what is found
        is_looked_at = look is None or manifest.inspected.all()
        if listing is not None and is_new and is_looked_at:
            manifest = _save_folds(manifest, place)
    if look is not None:
        manifest = look(manifest, place)
    return manifest, problems


def _load_known(place: Path, is_cache: bool) -> Manifest | None:
    """Return an earlier manifest of the images, None where there is none."""
    if not place.exists():
        return None
    try:
        return load_manifest(place)
    except DataError:
        if not is_cache:
            raise  # it may be another file, named by mistake
        return None  # all that the cache had is found again


def _assign_folds(manifest: Manifest, division: Division) -> tuple[Manifest, bool]:
    """Return a manifest with folds by the settings, and whether some are new; images keep those that they have."""
    kept = manifest.fold if manifest.division == division.key else None
    folds = assign_splits(manifest.source(TRAIN), division, kept)
    is_new = kept is None or bool((kept == UNASSIGNED).any())
    return replace(manifest, fold=folds, division=division.key), is_new


def _refuse_other(file: Path, known: Manifest, manifest: Manifest, listed: Path) -> None:
    """Refuse to replace a manifest of other images."""
    if known.packed is not None:
        raise DataError(
            f"data.manifest {file}: is the index of shards, which nothing else can stand in; name "
            f"another file, or read the shards with data.root={printable(file.parent)}"
        )
    there = known.places(manifest)
    same = there >= 0
    if known.root != manifest.root:
        same[same] = known.bytes[there[same]] == manifest.bytes[same]
    if not same.any():
        raise DataError(
            f"data.manifest {file}: lists {len(known):,} images of {printable(known.root)}, none "
            f"of which is in {printable(listed)}; name another file for these, or delete it"
        )


def _take_as_written(file: Path, pixels: PixelFormat) -> Manifest:
    """Return a manifest without listing its images anew, if they were inspected in the pixel format of the settings."""
    manifest = load_manifest(file)
    inspected = manifest.pixels
    if inspected != pixels:
        raise ConfigError(
            f"data.manifest {file}: its images were read with data.channels={inspected.channels} "
            f"data.bits={inspected.bits}; set the same, or give data.root too, to read them anew"
        )
    return manifest


def _save_folds(manifest: Manifest, place: Path) -> Manifest:
    """Save the folds of the images, so that they keep them when files are added later."""
    try:
        manifest.save(place)
    except (VitrailError, OSError) as error:
        note = f"{error}; files that are added may change which images are held out"
        return replace(manifest, notes=(*manifest.notes, note))
    return manifest


def open_split(section: DataSection, split: Split) -> tuple[Source, tuple[str, ...]]:
    """Find one split of a folder, of shards, of a list or of a named set, with its notes: the images of `open_data`.

    Settings of how images are split are no error here where there are validation images, but a
    note: they may come from a weight file that was trained on other images.

    Args:
        section: Which images; a root that has `val_split` alone will do for split "val".
        split: "all" is for class folders and lists without splits.

    Raises: As `open_data` does.
    """
    source, is_divided = _open_split(section, split)
    check_order(section, source)
    unused = [] if is_divided or split == "all" else find_dividing_settings(section)
    if not unused:
        return source, source.notes
    note = f"{source.description}: stands as it is, {' '.join(unused)} divides nothing"
    return source, (*source.notes, note)


def list_files_read(section: DataSection, source: Source) -> Iterator[Path]:
    """Yield the files that images are read from, with the list or the manifest that names them."""
    for file in (section.list, section.manifest):
        if file is not None:
            yield Path(file).expanduser()
    if section.name is not None and is_hf(section.name):
        yield from files_of(Path(section.name.removeprefix("hf:")).expanduser())
    if isinstance(source, ShardSource):
        yield source.root / INDEX
        yield from (source.root / shard.name for shard in source.places.shards)
    elif isinstance(source, FileSource):
        yield from map(source.path, range(len(source)))


def _open_split(section: DataSection, split: Split) -> tuple[Source, bool]:
    """Return the images of a split, and whether some were held out of others to get them."""
    check_settings(section)
    if section.name is not None:
        return _open_split_of_set(section, split)
    root = _root(section)
    is_quarantined = section.bad_files == "quarantine"
    source = None
    if is_quarantined:
        pass  # a manifest says which images are unreadable
    elif section.list is not None:
        source = _open_split_of_list(section, split)
    elif root is not None and not has_shards(root) and not section.unlabelled:
        source = _open_split_of_folder(section, root, split)
    if source is not None:
        return source, False
    if split == "all":
        return _open_whole_manifest(section), False
    data = _open(section)
    return data.train if split == "train" else data.val, data.is_divided


def _open_split_of_set(section: DataSection, split: Split) -> tuple[Source, bool]:
    """Return a split of a named set or table, and whether it was held out."""
    train, val = _open_set(section, needs_train=split != "val")
    if split == "all":
        if val is not None:
            raise ConfigError(
                f"evaluate.split all: {section.name} has a training and a test part; choose train "
                "or val"
            )
        assert train is not None
        return train, False
    is_divided = False
    if val is None and train is not None:
        train, val = _divide(section, train)
        is_divided = True
    source = val if split == "val" else train
    assert source is not None
    return source, is_divided


def _open_split_of_list(section: DataSection, split: Split) -> Source | None:
    """Return a split of a list that needs no holding out, as a list may have rows to evaluate on alone; else None."""
    listed = read_list(section)
    if split == "all":
        if listed.is_divided:
            raise _refuse_all(section.list)
        return listed.train
    if split == "val":
        return listed.val
    return listed.train if listed.val is not None else None


def _open_split_of_folder(section: DataSection, root: Path, split: Split) -> Source | None:
    """Return a split of a root that needs no holding out, as a validation folder may lie alone; else None."""
    train, val = find_splits(root, section.train_split, section.val_split)
    if split == "all":
        if root not in (train, val):
            raise _refuse_all(root)
        folder = train
    elif split == "val":
        folder = val
    else:
        folder = train if val is not None else None
    if folder is not None:
        return note_hidden(root, scan(folder, class_order=section.class_order))
    if train is None:
        raise DataError(
            f"data.root {root}: has no {section.train_split}/; its folders: "
            f"{list_some(visible_folders(root))}"
        )
    return None


def _open_whole_manifest(section: DataSection) -> Source:
    """Return all images of a manifest without validation images."""
    manifest, _ = _list_images(section)
    if manifest.has_val:
        raise _refuse_all(section.list or manifest.root)
    source = manifest.source(TRAIN)
    if section.bad_files == "quarantine":
        return _leave_out_unreadable(manifest, source)
    return source


def _refuse_all(where: object) -> ConfigError:
    return ConfigError(f"evaluate.split all: {where} is divided into splits; choose train or val")


def _open_set(
    section: DataSection, needs_train: bool = True
) -> tuple[Source | None, Source | None]:
    """Return the training and the validation images of a named set or table, None for a split that it has not."""
    assert section.name is not None
    if is_hf(section.name):
        return open_hf(section, needs_train)
    train, test = open_named(section.name, _root(section), section.download)
    if section.unlabelled:
        train, test = drop_labels(train), None if test is None else drop_labels(test)
    return train, None if section.val_split is None else test


def _divide(section: DataSection, source: Source) -> tuple[Source, Source]:
    """Return the images to train on, and those held out for validation."""
    division = _division(section)
    return hold_out(source, division, assign_splits(source, division))


def _split_manifest(
    manifest: Manifest, division: Division, quarantine: bool
) -> tuple[Source, Source, NDArray[np.int64]]:
    """Return a manifest's training and validation images, and the indices of the latter in it."""
    if manifest.has_val:
        is_val = manifest.part == VAL
        train, val = manifest.source(TRAIN), manifest.source(VAL)
    else:
        if manifest.division != division.key:
            raise ConfigError(
                f"data.manifest: its images are divided by {manifest.division}, the settings say "
                f"{division.key}; give data.root or data.list too, to divide them anew"
            )
        is_val = manifest.fold == division.fold
        train, val = hold_out(manifest.source(TRAIN), division, manifest.fold)
    if quarantine:
        train = _leave_out_unreadable(manifest, train, ~is_val)
        val = _leave_out_unreadable(manifest, val, is_val)
        is_val &= ~manifest.unreadable
    return train, val, np.flatnonzero(is_val)


def _leave_out_unreadable(
    manifest: Manifest, source: Source, chosen: NDArray[np.bool_] | None = None
) -> Source:
    """Return a source without its unreadable images.

    Args:
        manifest: The manifest that the source is from.
        source: The images.
        chosen: Which images of the manifest they are; None for all.
    """
    indices = np.arange(len(manifest)) if chosen is None else np.flatnonzero(chosen)
    bad = manifest.unreadable[indices]
    if bad.all():
        raise DataError(f"{source.description}: none of its {len(source)} images can be read")
    notes = source.notes
    if bad.any():
        first = manifest.name(int(indices[np.argmax(bad)]))
        notes += (
            f"{source.description}: left out {tell_count(int(bad.sum()), 'image')} that cannot be read, the "
            f"first is {first}",
        )
    return source.take(~bad, source.description, notes)


def _pixels(section: DataSection) -> PixelFormat:
    return PixelFormat(section.channels, section.bits)


def _root(section: DataSection) -> Path | None:
    return None if section.root is None else Path(section.root).expanduser()


def _division(section: DataSection) -> Division:
    return Division(section.val_fraction, section.folds, section.fold, section.group_regex)
