"""Folders of images, one a class: what is in them, and which of them are splits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classes.names import ClassOrder, canonical, order, visible, why_apart
from vitrail.data.paths import Paths
from vitrail.data.shards import INDEX
from vitrail.data.sources import FileSource
from vitrail.errors import ConfigError, DataError, closest, few, printable
from vitrail.files import NOWHERE, Identity, identity, no_file
from vitrail.images.decoding import ENDINGS, NOT_READ

EXTENSIONS = frozenset(ending for endings in ENDINGS.values() for ending in endings)
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
SYSTEM = frozenset(
    (
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology's
        "@recycle", "@recently-snapshot", "@transcode",  # QNAP's
        "~snapshot",  # NetApp's
        "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows'
        "ehthumbs_vista.db", "$winreagent", "$extend", "wpsettings.dat", "indexervolumeguid",
        *(f"found.{number:03}" for number in range(100)),
        "__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder",  # macOS's
        "lost+found", "aquota.user", "aquota.group",  # Linux's
        "__pycache__",
    )
)  # fmt: skip
"""Files and folders that systems and storage devices add to others' folders, in lower case; those that begin with a
point, such as .@__thumb, .AppleDouble and ._0.jpg, need no name here."""
IN_A_CIRCLE = "a link to a folder that contains it"
FOLDER, FILE = "a folder", "a file"


MARK = "vitrail-resized.json"
"""The file by which a folder says that its pixels were changed."""
CHANGED = "pixels were changed: "
UNREAD = "images of formats that are not read"


def find_splits(root: Path, train_split: str, val_split: str | None) -> tuple[Path | None, Path | None]:
    """Return the training and the validation folder; class folders directly in the root make it the training folder."""
    folders = visible_folders(root)
    train = root / train_split if train_split in folders else None
    val = root / val_split if val_split in folders else None
    if train is None and val is None:
        splits = [f for f in folders if f.lower() in SPLIT_WORDS and visible_folders(root / f)]
        if splits:
            settings = " ".join(f"data.{key}_split={f}" for key, f in zip(("train", "val"), splits, strict=False))
            raise DataError(
                f"data.root {root}: has no {train_split}/, and {few(splits)} look like splits rather than classes; "
                f"set them, such as {settings}"
            )
        return root, None
    if val is None and val_split is not None:
        others = [f for f in folders if f != train_split]
        beside = f", only {few(others)}; set data.val_split to one of them" if others else ""
        raise DataError(
            f"data.root {root}: has {train_split}/ but no {val_split}/{beside}{', or' if others else '; set'} "
            f"data.val_split=null to hold out data.val_fraction of {train_split}/"
        )
    return train, val


def visible_folders(root: Path) -> list[str]:
    """Return the names of the folders that are the user's own, sorted.

    Raises:
        DataError: The root is not there, is a file, or cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(root) if not is_hidden(entry.name) and _kind(entry) == FOLDER)
    except FileNotFoundError:
        names = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        near = closest(root.name, names, alike=0.75)
        raise DataError(
            f"data.root {root}: no such folder{near or '; set it to the folder with your images'}"
        ) from None
    except NotADirectoryError:
        raise DataError(
            f"data.root {root}: is a file; give a folder with train/<class>/ and val/<class>/, unpacked if it is an "
            "archive"
        ) from None
    except OSError as error:
        raise DataError(f"data.root {root}: cannot be read ({error.strerror})") from error


def left_out(root: Path, splits: Collection[str]) -> tuple[str, ...]:
    """Return a note of the folders beside the splits, which are neither trained nor validated with."""
    others = [] if "" in splits else [name for name in visible_folders(root) if name not in splits]
    return (f"{root}: left out {few(others, 10)}, beside {' and '.join(dict.fromkeys(splits))}",) if others else ()


def refuse_inside(root: Path, output: Path) -> None:
    """Refuse to write among the images, where the next run would take it for a class.

    Raises:
        ConfigError: With what to change.
    """
    there = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if root.exists() and identity(root) in containing(there):  # also where a link, or another case, spells it otherwise
        raise ConfigError(f"--output {output}: lies in data.root {root}, among the images; choose a folder beside it")


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is the system's or a tool's own, not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Say whether a file's name ends as images do; what is in it is found only when it is read."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def is_unread_image(name: str) -> bool:
    """Say whether a file's name ends as those of images that are not read, such as .heic."""
    return name[name.rfind(".") :].lower() in NOT_READ


def walk(
    folder: str | Path,
    relative: str,
    ignored: Ignored,
    inside: Collection[Identity] = (),
    takes: Callable[[str], bool] = is_image,
) -> Iterator[str]:
    """Yield the images below a folder, deep folders included, in the order of their names and relative to it.

    Links are followed, but for those to a folder that they lie in.

    Args:
        folder: Where the search begins.
        relative: The folder below it whose images are wanted; nothing for itself.
        ignored: Takes what is passed over.
        inside: The folders that are being searched, and those that they lie in; found where it is not given.
        takes: Whether a file of this name is wanted.

    Raises:
        OSError: A folder cannot be read.
    """
    inside = inside or containing(folder)
    here = os.path.join(folder, relative)
    inside = (*inside, identity(here))
    for entry in _sorted_entries(here):
        path = os.path.join(relative, entry.name)
        if is_hidden(entry.name):
            ignored.hidden.append(path)
        elif (kind := _kind(entry, inside)) == FOLDER:
            yield from walk(folder, path, ignored, inside, takes)
        elif kind != FILE:
            ignored.odd.append(f"{path} ({kind})")
        elif takes(entry.name):
            yield path
        else:
            ignored.others.append(path)


def containing(folder: str | Path) -> tuple[Identity, ...]:
    """Return a folder and all that it lies in."""
    here = Path(folder).resolve()
    return tuple(map(identity, (here, *here.parents)))


def lies_in_a_circle(folder: Path) -> bool:
    """Say whether the way to a folder goes through a link to one that contains it."""
    way = [identity(place) for place in (folder.absolute(), *folder.absolute().parents)]
    return len(set(way)) < len(way)


def _kind(entry: os.DirEntry[str], inside: Collection[Identity] = ()) -> str:
    """Return FOLDER, FILE, or what it is instead; none of them is opened."""
    try:
        if entry.is_dir():
            return IN_A_CIRCLE if inside and identity(entry.path) in inside else FOLDER
        if entry.is_file():  # which the folder itself tells, so that millions of files are not asked each
            return FILE
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
    return no_file(entry.path) or FILE


@dataclass
class Ignored:
    """What a scan read past."""

    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """What is no regular file, with what it is."""

    def notes(self, folder: Path) -> tuple[str, ...]:
        """Say it, each kind with a count and examples."""
        found, where = [], printable(folder)
        if self.hidden:
            found.append(
                f"{where}: ignored {len(self.hidden)} hidden or system files or folders: {few(self.hidden, 10)}"
            )
        if self.odd:
            found.append(f"{where}: ignored {len(self.odd)} that are no regular files: {few(self.odd, 10)}")
        unread = [name for name in self.others if is_unread_image(name)]
        others = [name for name in self.others if not is_unread_image(name)]
        if unread:
            endings = ", ".join(sorted({name[name.rfind(".") :].lower() for name in unread}))
            found.append(
                f"{where}: left out {len(unread)} {UNREAD} ({endings}): {few(unread)}; convert them to JPEG or PNG"
            )
        if others:
            found.append(f"{where}: ignored {len(others)} files that are not images: {few(others)}")
        if self.loose:
            found.append(f"{where}: ignored {len(self.loose)} images outside the class folders: {few(self.loose)}")
        return tuple(found)

    def hint(self) -> str:
        """Say which images are there all the same, but cannot be read."""
        unread = [name for name in self.others if is_unread_image(name)]
        return f"; {len(unread)} {UNREAD} were left out ({few(unread)}), convert them" if unread else ""


@dataclass(frozen=True)
class Listing:
    """The images below a root, and what forbids to train on them."""

    root: Path
    train: FileSource
    val: FileSource | None
    """None where a part of the training images is to be held out."""
    problems: tuple[str, ...]
    is_list: bool = False
    """Whether a file named them, so that both parts have one folder."""


def list_folder(root: Path, train_split: str, val_split: str | None, class_order: ClassOrder | None = None) -> Listing:
    """List the images of a root's training and validation folders.

    Raises:
        DataError: There are no images to train on, or it cannot be told where.
    """
    train_folder, val_folder = find_splits(root, train_split, val_split)
    if train_folder is None:
        raise DataError(
            f"data.root {root}: has {val_split}/ but no {train_split}/ to train on; set data.train_split to one of its "
            f"folders: {few(visible_folders(root))}"
        )
    problems: list[str] = []
    train = note_hidden(root, scan(train_folder, problems, class_order))
    if len(train.classes) == 1:
        problems.append(one_class(root, train_folder, train.classes[0], train_split))
    if val_folder is None:
        return Listing(root, train, None, tuple(problems))
    try:
        val = scan(val_folder, problems, class_order)
    except DataError as error:
        return Listing(root, train, None, (*problems, str(error)))
    missing = [c for c in train.classes if c not in set(val.classes)]
    extra = [c for c in val.classes if c not in set(train.classes)]
    if missing or extra:
        wrong = [f"missing from {val_split}/: {few(missing)}"] * bool(missing)
        wrong += [f"only in {val_split}/: {few(extra)}"] * bool(extra)
        problems.append(
            f"data.root {root}: {val_split}/ has other classes than {train_split}/ ({'; '.join(wrong)})"
            f"{why_apart(missing, extra)}; give both the same class folders, or set data.val_split=null to hold out a "
            "part of the training images"
        )
    return Listing(root, train, val, tuple(problems))


def scan(folder: Path, problems: list[str] | None = None, class_order: ClassOrder | None = None) -> FileSource:
    """List the images of each class folder, deep folders included, in the order of their names.

    Folders whose names are one in two forms of Unicode are one class.

    Args:
        folder: Where the class folders are.
        problems: Takes what is wrong, where the rest is to be listed all the same.
        class_order: Of the classes; None is that of text.

    Raises:
        DataError: It holds no image in a class folder; or something is wrong, and nobody takes it.
    """
    ignored = Ignored()
    try:
        top = _sorted_entries(folder)
        loose, classes, inside = [], [], containing(folder)
        for entry in top:
            if is_hidden(entry.name):
                ignored.hidden.append(entry.name)
            elif (kind := _kind(entry, inside)) == FOLDER:
                classes.append(entry.name)
            elif kind != FILE:
                ignored.odd.append(f"{entry.name} ({kind})")
            elif entry.name != MARK:
                (loose if is_image(entry.name) else ignored.others).append(entry.name)
        ignored.loose += [] if not classes else loose
        named = _by_class(classes, class_order or "text")
        found = [
            [os.fsencode(path) for name in folders for path in walk(folder, name, ignored, inside)]
            for folders in named.values()
        ]
        changed = changes(folder)
    except OSError as error:
        raise DataError(f"data.root {printable(folder)}: cannot be read ({error})") from error
    empty = [name for name, paths in zip(named, found, strict=True) if not paths]
    if not classes or len(empty) == len(named):
        raise DataError(_no_images(folder, classes, loose, ignored))
    if empty:
        problem = (
            f"data.root {folder}: {len(empty)} of {len(named)} class folders have no images ({few(empty)}); "
            f"add images to them, or remove them{ignored.hint()}"
        )
        if problems is None:
            raise DataError(problem)
        problems.append(problem)
    return FileSource(
        folder=folder,
        paths=Paths.of(path for paths in found for path in paths),
        labels=np.repeat(np.arange(len(named), dtype=np.int32), [len(paths) for paths in found]),
        classes=tuple(named),
        description=printable(folder),
        notes=(*([_told(changed)] if changed else []), *_joined(folder, named), *ignored.notes(folder)),
    )


def _by_class(folders: Sequence[str], class_order: ClassOrder) -> dict[str, list[str]]:
    """Return the folders of each class, by its name, in their order."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        found.setdefault(printable(canonical(folder)), []).append(folder)
    names = list(found)
    return {names[index]: found[names[index]] for index in order(names, class_order)}


def _joined(folder: Path, named: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{printable(folder)}: {len(folders)} folders are one class, {printable(name)}, as their names are one in two "
        f"forms of Unicode: {' and '.join(map(visible, folders))}"
        for name, folders in named.items()
        if len(folders) > 1
    ]


def changes(folder: Path) -> list[dict[str, Any]]:
    """Return what `vitrail resize-data` did to the images of a folder, or of one that it lies in; the last comes last.

    Raises:
        DataError: It was changed, but cannot be told how.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        if (place / MARK).is_file():
            try:
                found = json.loads((place / MARK).read_text(encoding="utf-8"))["changes"]
                _told(found)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{place / MARK}: is damaged, and it cannot be told how the images were changed; resize them anew"
                ) from error
            return found
    return []


def _told(changed: list[dict[str, Any]]) -> str:
    return CHANGED + ", then ".join(
        f"resized to a short side of {one['short_side']} ({one['filter']}, quality {one['quality']}) by `vitrail "
        f"resize-data` from {one['from']}"
        for one in changed
    )


def note_hidden(root: Path, source: FileSource) -> FileSource:
    """Add a note of what is hidden or no file beside the splits."""
    if source.folder == root:
        return source  # its own scan has seen them
    ignored = Ignored()
    for entry in _sorted_entries(root):
        if is_hidden(entry.name):
            ignored.hidden.append(entry.name)
        elif (kind := _kind(entry)) not in (FOLDER, FILE):
            ignored.odd.append(f"{entry.name} ({kind})")
    return replace(source, notes=(*ignored.notes(root), *source.notes))


def _sorted_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _no_images(folder: Path, classes: list[str], loose: list[str], ignored: Ignored) -> str:
    where = f"data.root {folder}"
    if loose:
        return (
            f"{where}: its {len(loose)} images lie in no class folder ({few(loose)}); move each into a folder with "
            "the name of its class"
        )
    if classes:
        known = few(EXTENSIONS, len(EXTENSIONS))
        none = f"none of its {len(classes)} folders has images ({few(classes)})"
        return f"{where}: {none}; known are {known}{ignored.hint()}"
    if tars := [name for name in ignored.others if name.endswith(".tar")]:
        return (
            f"{where}: holds tar files ({few(tars)}) and no {INDEX}, so it cannot be told what is in them; unpack them "
            "into a folder for each class, which `vitrail pack` makes shards of"
        )
    if what := ignored.hidden + ignored.odd + ignored.others:
        return f"{where}: has no class folders, only hidden or system files or files that are no images ({few(what)})"
    return f"{where}: is empty; it should hold a folder of images for each class"


def one_class(root: Path, folder: Path, name: str, train_split: str) -> str:
    """Say what is wrong with a folder that holds a single one."""
    inner = root / name
    if folder == root and train_split in visible_folders(inner):
        return f"data.root {root}: holds only {name}/, which has the splits; set data.root={inner}"
    return f"data.root {folder}: has only one class, {name!r}; a classifier needs at least two class folders"
