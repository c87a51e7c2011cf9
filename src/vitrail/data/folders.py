"""Image folders: find the splits and the class folders below a root, and list their images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, filterfalse
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classes.names import (
    ClassOrder,
    canonical,
    explain_look_alikes,
    quote_name,
    sort_classes,
)
from vitrail.data.paths import Paths
from vitrail.data.shards import INDEX
from vitrail.data.sources import FileSource
from vitrail.errors import (
    ConfigError,
    DataError,
    list_some,
    printable,
    suggest,
    tell_count,
    write_option,
)
from vitrail.files import NOWHERE, Identity, identity, no_file
from vitrail.images.formats import ENDINGS, NOT_READ

EXTENSIONS = frozenset(chain.from_iterable(ENDINGS.values()))
"""File extensions of images."""
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
"""Names that splits often have."""
SYSTEM = frozenset(
    (
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology's
        "@recycle", "@recently-snapshot", "@transcode",  # QNAP's
        "~snapshot",  # NetApp's
        # Windows'
        "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
        "ehthumbs_vista.db", "$winreagent", "$extend", "wpsettings.dat", "indexervolumeguid",
        *(f"found.{number:03}" for number in range(100)),
        # macOS's
        "__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder",
        "lost+found", "aquota.user", "aquota.group",  # Linux's
        "__pycache__",
    )
)  # fmt: skip
"""Files and folders that systems and storage devices add to others' folders, in lower case; those
that begin with a point, such as .@__thumb, .AppleDouble and ._0.jpg, need no name here."""
IN_A_CIRCLE = "a link to a folder that contains it"
FOLDER = "a folder"
FILE = "a file"
MARK = "vitrail-resized.json"
"""The file by which a folder says that its pixels were changed."""
CHANGED = "pixels were changed: "
"""How a note begins that says what `vitrail resize-data` did."""
UNREAD = "images of formats that are not read"
"""Words of a note about images that are not read."""


def find_splits(
    root: Path, train_split: str, val_split: str | None
) -> tuple[Path | None, Path | None]:
    """Return the training and the validation folder; class folders directly in the root make it the training folder."""
    folders = visible_folders(root)
    train = root / train_split if train_split in folders else None
    val = root / val_split if val_split in folders else None
    if train is None and val is None:
        _refuse_other_splits(root, train_split, folders)
        return root, None
    if val is None and val_split is not None:
        others = [folder for folder in folders if folder != train_split]
        hold_out = f"data.val_split=null to hold out data.val_fraction of {train_split}/"
        if others:
            advice = f", only {list_some(others)}; set data.val_split to one of them, or {hold_out}"
        else:
            advice = f"; set {hold_out}"
        raise DataError(f"data.root {root}: has {train_split}/ but no {val_split}/{advice}")
    return train, val


def _refuse_other_splits(root: Path, train_split: str, folders: Sequence[str]) -> None:
    """Refuse folders that look like splits under other names, and would be taken for classes."""
    splits = []
    for folder in folders:
        if folder.lower() in SPLIT_WORDS and visible_folders(root / folder):
            splits.append(folder)
    if splits:
        settings = f"data.train_split={splits[0]}"
        if len(splits) > 1:
            settings += f" data.val_split={splits[1]}"
        raise DataError(
            f"data.root {root}: has no {train_split}/, and {list_some(splits)} look like splits "
            f"rather than classes; set them, such as {settings}"
        )


def visible_folders(root: Path) -> list[str]:
    """Return the names of the folders that are the user's own, sorted.

    Raises:
        DataError: The root is not there, is a file, or cannot be read.
    """
    try:
        names = []
        for entry in os.scandir(root):
            if not is_hidden(entry.name) and _kind(entry) == FOLDER:
                names.append(entry.name)
        return sorted(names)
    except FileNotFoundError:
        beside = []
        if root.parent.is_dir():
            beside = os.listdir(root.parent)
        advice = suggest(root.name, beside, alike=0.75) or "; set it to the folder with your images"
        raise DataError(f"data.root {root}: no such folder{advice}") from None
    except NotADirectoryError:
        what = no_file(root) or "a file"
        raise DataError(
            f"data.root {root}: is {what}; give a folder with train/<class>/ and val/<class>/, "
            "unpacked if it is an archive"
        ) from None
    except OSError as error:
        raise DataError(f"data.root {root}: cannot be read ({error.strerror})") from error


def note_left_out(root: Path, splits: Collection[str]) -> tuple[str, ...]:
    """Return a note about folders beside the splits, which are neither trained nor validated with; () for none."""
    if "" in splits:
        return ()  # the root itself is a split
    others = [name for name in visible_folders(root) if name not in splits]
    if not others:
        return ()
    return (
        f"{root}: left out {list_some(others, 10)}, beside {' and '.join(dict.fromkeys(splits))}",
    )


def refuse_inside(root: Path, output: Path) -> None:
    """Refuse an output folder among the images, which the next run would take for a class.

    Raises:
        ConfigError: It lies there.
    """
    place = output.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    # compared by identity, as a link, or another case, may spell the root otherwise
    if root.exists() and identity(root) in list_enclosing(existing):
        where = write_option("output", output)
        raise ConfigError(
            f"{where}: lies in data.root {root}, among the images; choose a folder beside it"
        )


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is hidden, or belongs to the system or a tool."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Say whether a file has the extension of an image; its content is looked at only when it is read."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def is_unread_image(name: str) -> bool:
    """Say whether a file has the extension of an image format that is not read, such as .heic."""
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
        relative: The folder below it whose images are yielded; empty for the folder itself.
        ignored: Collects what is passed over.
        inside: The folders that are being searched, and those that they lie in; found where it is
            not given.
        takes: Says by its name whether a file is yielded.

    Raises:
        OSError: A folder cannot be read.
    """
    inside = inside or list_enclosing(folder)
    here = os.path.join(folder, relative)
    inside = (*inside, identity(here))
    for entry in _sorted_entries(here):
        path = os.path.join(relative, entry.name)
        if is_hidden(entry.name):
            ignored.hidden.append(path)
            continue
        kind = _kind(entry, inside)
        if kind == FOLDER:
            yield from walk(folder, path, ignored, inside, takes)
        elif kind != FILE:
            ignored.odd.append(f"{path} ({kind})")
        elif takes(entry.name):
            yield path
        else:
            ignored.others.append(path)


def list_enclosing(folder: str | Path) -> tuple[Identity, ...]:
    """Return the identities of a folder and of all folders that it lies in."""
    here = Path(folder).resolve()
    return tuple(map(identity, (here, *here.parents)))


def lies_in_a_circle(folder: Path) -> bool:
    """Say whether the path to a folder goes through a link to one that contains it."""
    place = folder.absolute()
    path = list(map(identity, (place, *place.parents)))
    return len(set(path)) < len(path)


def _kind(entry: os.DirEntry[str], inside: Collection[Identity] = ()) -> str:
    """Return FOLDER, FILE, or what the entry is instead; it is not opened."""
    try:
        if entry.is_dir():
            return IN_A_CIRCLE if inside and identity(entry.path) in inside else FOLDER
        # the folder itself has this, so that millions of files need no call of their own
        if entry.is_file():
            return FILE
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
    return no_file(entry.path) or FILE


@dataclass
class Ignored:
    """Files and folders that a scan passed over."""

    hidden: list[str] = field(default_factory=list)
    """Hidden files and folders, and those of systems and tools."""
    others: list[str] = field(default_factory=list)
    """Files that are no images."""
    loose: list[str] = field(default_factory=list)
    """Images outside the class folders."""
    odd: list[str] = field(default_factory=list)
    """Entries that are no regular files, with what they are."""

    def notes(self, folder: Path) -> tuple[str, ...]:
        """Return a note about each kind, with a count and examples."""
        where = printable(folder)
        notes = []
        if self.hidden:
            notes.append(
                f"{where}: ignored {len(self.hidden)} hidden or system files or folders: "
                f"{list_some(self.hidden, 10)}"
            )
        if self.odd:
            notes.append(
                f"{where}: ignored {len(self.odd)} that are no regular files: "
                f"{list_some(self.odd, 10)}"
            )
        unread = self._unread
        if unread:
            endings = ", ".join(sorted({name[name.rfind(".") :].lower() for name in unread}))
            notes.append(
                f"{where}: left out {len(unread)} {UNREAD} ({endings}): {list_some(unread)}; "
                "convert them to JPEG or PNG"
            )
        others = list(filterfalse(is_unread_image, self.others))
        if others:
            files = tell_count(
                len(others), "file that is not an image", "files that are not images"
            )
            notes.append(f"{where}: ignored {files}: {list_some(others)}")
        if self.loose:
            notes.append(
                f"{where}: ignored {tell_count(len(self.loose), 'image')} outside the class folders: "
                f"{list_some(self.loose)}"
            )
        return tuple(notes)

    def hint(self) -> str:
        """Return the end of an error about missing images: those that are there, but of formats that are not read."""
        unread = self._unread
        return (
            f"; {len(unread)} {UNREAD} were left out ({list_some(unread)}), convert them"
            if unread
            else ""
        )

    @property
    def _unread(self) -> list[str]:
        return list(filter(is_unread_image, self.others))


@dataclass(frozen=True)
class Listing:
    """The images below a root by their split, and problems that forbid to train on them."""

    root: Path
    train: FileSource
    val: FileSource | None
    """Validation images; None where some of the training images are to be held out."""
    problems: tuple[str, ...]
    """Error messages, empty where the images can be trained on."""
    is_list: bool = False
    """Whether a list named the images, so that both splits have one folder."""


def list_folder(
    root: Path, train_split: str, val_split: str | None, class_order: ClassOrder | None = None
) -> Listing:
    """List the images of a root's training and validation folders.

    Raises:
        DataError: There are no images to train on, or it cannot be told where.
    """
    train_folder, val_folder = find_splits(root, train_split, val_split)
    if train_folder is None:
        raise DataError(
            f"data.root {root}: has {val_split}/ but no {train_split}/ to train on; set "
            f"data.train_split to one of its folders: {list_some(visible_folders(root))}"
        )
    problems: list[str] = []
    train = note_hidden(root, scan(train_folder, problems, class_order))
    if len(train.classes) == 1:
        problems.append(_explain_one_class(root, train_folder, train.classes[0], train_split))
    if val_folder is None:
        return Listing(root, train, None, tuple(problems))
    try:
        val = scan(val_folder, problems, class_order)
    except DataError as error:
        return Listing(root, train, None, (*problems, str(error)))
    known, validated = set(train.classes), set(val.classes)
    missing = [name for name in train.classes if name not in validated]
    extra = [name for name in val.classes if name not in known]
    differences = []
    if missing:
        differences.append(f"missing from {val_split}/: {list_some(missing)}")
    if extra:
        differences.append(f"only in {val_split}/: {list_some(extra)}")
    if differences:
        problems.append(
            f"data.root {root}: {val_split}/ has other classes than {train_split}/ "
            f"({'; '.join(differences)}){explain_look_alikes(missing, extra)}; give both the same "
            "class folders, or set data.val_split=null to hold out a part of the training images"
        )
    return Listing(root, train, val, tuple(problems))


def scan(
    folder: Path, problems: list[str] | None = None, class_order: ClassOrder | None = None
) -> FileSource:
    """List the images of each class folder, deep folders included, in the order of their names.

    Folders whose names are one in two forms of Unicode are one class.

    Args:
        folder: Where the class folders are.
        problems: Collects problems, where the images are to be listed in spite of them.
        class_order: Order of the classes; None is the order of text.

    Raises:
        DataError: It holds no image in a class folder; or there is a problem, and no list to
            collect it.
    """
    ignored = Ignored()
    try:
        class_folders, loose = _sort_entries(folder, ignored)
        folders_of = _group_by_class(class_folders, class_order or "text")
        inside = list_enclosing(folder)
        paths_of: list[list[bytes]] = []
        for folders in folders_of.values():
            paths: list[bytes] = []
            for name in folders:
                paths += map(os.fsencode, walk(folder, name, ignored, inside))
            paths_of.append(paths)
        changed = read_changes(folder)
    except OSError as error:
        raise DataError(f"data.root {printable(folder)}: cannot be read ({error})") from error

    empty = [name for name, paths in zip(folders_of, paths_of, strict=True) if not paths]
    if len(empty) == len(folders_of):  # or there are none
        raise DataError(_explain_no_images(folder, class_folders, loose, ignored))
    if empty:
        problem = (
            f"data.root {folder}: {len(empty)} of {len(folders_of)} class folders have no images "
            f"({list_some(empty)}); add images to them, or remove them{ignored.hint()}"
        )
        if problems is None:
            raise DataError(problem)
        problems.append(problem)
    notes = [describe_changes(changed)] if changed else []
    notes += _note_joined_folders(folder, folders_of)
    notes += ignored.notes(folder)
    counts = list(map(len, paths_of))
    return FileSource(
        folder=folder,
        paths=Paths.of(chain.from_iterable(paths_of)),
        labels=np.repeat(np.arange(len(folders_of), dtype=np.int32), counts),
        classes=tuple(folders_of),
        description=printable(folder),
        notes=tuple(notes),
    )


def _sort_entries(folder: Path, ignored: Ignored) -> tuple[list[str], list[str]]:
    """Return the names of the class folders, and of images outside of them, which are ignored beside class folders."""
    class_folders, loose = [], []
    inside = list_enclosing(folder)
    for entry in _sorted_entries(folder):
        if is_hidden(entry.name):
            ignored.hidden.append(entry.name)
            continue
        kind = _kind(entry, inside)
        if kind == FOLDER:
            class_folders.append(entry.name)
        elif kind != FILE:
            ignored.odd.append(f"{entry.name} ({kind})")
        elif is_image(entry.name):
            loose.append(entry.name)
        elif entry.name != MARK:
            ignored.others.append(entry.name)
    if class_folders:
        ignored.loose += loose
    return class_folders, loose


def _group_by_class(folders: Sequence[str], class_order: ClassOrder) -> dict[str, list[str]]:
    """Return the folders of each class, by the class name, in the order of the classes."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(printable(canonical(folder)), []).append(folder)
    names = list(groups)
    return {names[index]: groups[names[index]] for index in sort_classes(names, class_order)}


def _note_joined_folders(folder: Path, folders_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note about each class that has several folders."""
    notes = []
    for name, folders in folders_of.items():
        if len(folders) > 1:
            notes.append(
                f"{printable(folder)}: {len(folders)} folders are one class, {printable(name)}, as "
                "their names are one "
                f"in two forms of Unicode: {' and '.join(map(quote_name, folders))}"
            )
    return notes


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """Return the changes that `vitrail resize-data` made to the images of a folder or of its parents, in order.

    Raises:
        DataError: The file that says so is damaged.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        if (place / MARK).is_file():
            try:
                changed = json.loads((place / MARK).read_text(encoding="utf-8"))["changes"]
                describe_changes(changed)  # which fails where something is missing
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{place / MARK}: is damaged, and it cannot be told how the images were "
                    "changed; resize them anew"
                ) from error
            return changed
    return []


def describe_changes(changed: list[dict[str, Any]]) -> str:
    """Return a note about what `vitrail resize-data` did to images."""
    return CHANGED + ", then ".join(
        f"resized to a short side of {one['short_side']} ({one['filter']}, quality "
        f"{one['quality']}) by `vitrail resize-data` from {one['from']}"
        for one in changed
    )


def note_hidden(root: Path, source: FileSource) -> FileSource:
    """Add a note about hidden entries, and those that are no files, beside the splits of a root."""
    if source.folder == root:
        return source  # its own scan has noted them
    ignored = Ignored()
    for entry in _sorted_entries(root):
        if is_hidden(entry.name):
            ignored.hidden.append(entry.name)
            continue
        kind = _kind(entry)
        if kind not in (FOLDER, FILE):
            ignored.odd.append(f"{entry.name} ({kind})")
    return replace(source, notes=(*ignored.notes(root), *source.notes))


def _sorted_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _explain_no_images(folder: Path, classes: list[str], loose: list[str], ignored: Ignored) -> str:
    """Return the error message of a folder without images in class folders."""
    where = f"data.root {folder}"
    if loose:
        return (
            f"{where}: its {len(loose)} images lie in no class folder ({list_some(loose)}); move "
            "each into a folder with the name of its class"
        )
    if classes:
        known = list_some(EXTENSIONS, len(EXTENSIONS))
        none = f"none of its {len(classes)} folders has images ({list_some(classes)})"
        return f"{where}: {none}; known are {known}{ignored.hint()}"
    tars = [name for name in ignored.others if name.endswith(".tar")]
    if tars:
        return (
            f"{where}: holds tar files ({list_some(tars)}) and no {INDEX}, so it cannot be told "
            "what is in them; unpack them into a folder for each class, which `vitrail pack` makes "
            "shards of"
        )
    passed_over = ignored.hidden + ignored.odd + ignored.others
    if passed_over:
        return (
            f"{where}: has no class folders, only hidden or system files or files that are no "
            f"images ({list_some(passed_over)})"
        )
    return f"{where}: is empty; it should hold a folder of images for each class"


def _explain_one_class(root: Path, folder: Path, name: str, train_split: str) -> str:
    """Return the error message of a training folder with a single class folder."""
    inner = root / name
    if folder == root and train_split in visible_folders(inner):
        return f"data.root {root}: holds only {name}/, which has the splits; set data.root={inner}"
    return f"data.root {folder}: has only one class, {name!r}; a classifier needs at least two class folders"
