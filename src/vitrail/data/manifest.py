"""The manifest of a data set: names, labels, splits and inspection of its images, kept in one file for all runs.

A manifest is one safetensors file of columns, an entry an image. It is mapped, not read: processes
share its pages, and workers that fork copy nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vitrail.classes.names import canonical
from vitrail.data.audit.inspect_file import FORMATS, RULES, Finding
from vitrail.data.folders import Listing
from vitrail.data.paths import Paths
from vitrail.data.shards import INDEX, Places, Shard, ShardSource
from vitrail.data.sources import TRAIN, VAL, FileSource, count_labels, format_label
from vitrail.errors import DataError, printable
from vitrail.files import write_whole
from vitrail.images.decoding import read_image
from vitrail.images.pixels import RGB, PixelFormat

FORMAT = 1
"""Version of the file format."""
NAMES = {"text": np.uint8, "ends": np.int64}
"""Columns of the file that hold the paths."""
LISTED = {"part": np.uint8, "label": np.int32, "bytes": np.int64, "mtime_ns": np.int64}
"""Columns that follow from listing the folders."""
KEPT = {"fold": np.int16}
"""Columns that an image keeps once it has them."""
FOUND = {
    "inspected": np.bool_,
    "findings": np.uint16,
    "reason": np.int32,
    "format": np.uint8,
    "width": np.int32,
    "height": np.int32,
    "content": np.uint64,
    "picture": np.uint64,
}
"""Columns of the inspection, which hold as long as the file does not change."""
PACKED = {"shard": np.int32, "offset": np.int64}
"""Columns of images in shards."""
COLUMNS = {**LISTED, **KEPT, **FOUND}
LABEL_SETS = "label_sets"
"""Column of the file that only multi-label data has."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifest:
    """Columns of n images, the training ones first, in the order that training numbers them."""

    root: Path
    """Folder of all images."""
    folders: tuple[str, str]
    """Folders of the training and the validation images, below the root."""
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Messages for the user about how the images were listed."""
    division: str = ""
    """Settings by which images were split, where there is no folder for validation; see
    `Division.key`."""
    called: tuple[str, str] | None = None
    """Names of the training and the validation images in messages, where these are not their
    folders."""
    label_sets: NDArray[np.bool_] | None = None
    """For multi-label data, (m, k): which of k classes each of m labels stands for; None for
    single-label data."""
    reasons: tuple[str, ...] = ()
    """Reasons why images cannot be read, by their number in the column `reason`."""
    pixels: PixelFormat = RGB
    """Pixel format that images were decoded to when they were inspected."""
    rules: int = RULES
    """Version of the inspection; see `inspect_file.RULES`."""
    paths: Paths
    """Path of each image, relative to the folder of its split."""
    part: NDArray[np.uint8]
    """Split of each image by its folder, TRAIN or VAL; all are TRAIN where there is no folder for
    validation."""
    fold: NDArray[np.int16]
    """Fold of each image, where there is no folder for validation; -1 for none."""
    label: NDArray[np.int32]
    """Label of each image; for multi-label data, an index into `label_sets`."""
    bytes: NDArray[np.int64]
    """Size of each file."""
    mtime_ns: NDArray[np.int64]
    """Time at which each file was last changed."""
    inspected: NDArray[np.bool_]
    """Whether each image was inspected, so that the columns below are known."""
    findings: NDArray[np.uint16]
    """Oddities of each image, as a sum of `Finding`."""
    reason: NDArray[np.int32]
    """Index into `reasons` of each image that cannot be read, -1 for the others."""
    format: NDArray[np.uint8]
    """Index into `inspect_file.FORMATS`."""
    width: NDArray[np.int32]
    """Pixels in a row."""
    height: NDArray[np.int32]
    """Number of rows."""
    content: NDArray[np.uint64]
    """(n, 2): hash of each file's bytes."""
    picture: NDArray[np.uint64]
    """Perceptual hash of each image."""
    packed: Places | None = None
    """Where the images lie in the shards of the root; None for images in folders."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_val(self) -> bool:
        """Whether there are validation images by their folder or split, so that none are held out."""
        return bool((self.part == VAL).any())

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """Which images cannot be read, as far as they were inspected."""
        return (self.findings & Finding.UNREADABLE) != 0

    @cached_property
    def hash(self) -> str:
        """Return 16 hexadecimal digits that change with any name, label, split, content or class."""
        digest = hashlib.blake2b("\n".join(self.classes).encode(), digest_size=8)
        for column in (
            self.paths.text,
            self.paths.ends,
            self.part,
            self.fold,
            self.label,
            self.bytes,
            self.content,
        ):
            digest.update(np.ascontiguousarray(column).data)
        if self.label_sets is not None:
            digest.update(np.ascontiguousarray(self.label_sets).data)
        return digest.hexdigest()

    def places(self, other: Manifest) -> NDArray[np.int64]:
        """Return where each image of another manifest stands in this one, -1 where it does not."""
        mine = (self.paths.text, self.paths.ends, self.part)
        others = (other.paths.text, other.paths.ends, other.part)
        if self.folders == other.folders and all(map(np.array_equal, mine, others)):
            return np.arange(len(self))
        place = {name: index for index, name in enumerate(self.names())}
        return np.fromiter(
            (place.get(name, -1) for name in other.names()), dtype=np.int64, count=len(other)
        )

    def names(self) -> Iterator[bytes]:
        """Yield the path of each image below the root."""
        prefixes = [os.fsencode(f"{folder}/").removeprefix(b"/") for folder in self.folders]
        for part, name in zip(self.part.tolist(), self.paths, strict=True):
            yield prefixes[part] + name

    def path(self, index: int) -> Path:
        """Return the path of an image; images in shards are named as if their folder lay beside the shards."""
        return self.root / self.folders[self.part[index]] / self.paths.name(index)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises OSError or, for an image in a shard, UnreadableImage."""
        if self.packed is None:
            return read_image(self.path(index))
        return self.packed.read(self.root, index)

    def name(self, index: int) -> str:
        """Return the path of an image below the root, with bytes that are no text escaped."""
        return printable(Path(self.folders[self.part[index]]) / self.paths.name(index))

    def source(self, part: int) -> FileSource:
        """Return the images of one split, TRAIN or VAL, as they were listed."""
        folder = self.root / self.folders[part]
        description = self.called[part] if self.called else printable(folder)
        source = FileSource(
            folder, self.paths, self.label, self.classes, description, self.notes, self.label_sets
        )
        if self.packed is not None:
            source = ShardSource(**vars(source), root=self.root, places=self.packed)
        chosen = self.part == part
        if chosen.all():
            return source
        return source.take(chosen, description, self.notes)

    def label_name(self, index: int) -> str:
        """Return the class name of an image; for multi-label data, the names of all its classes."""
        return format_label(int(self.label[index]), self.classes, self.label_sets)

    def count_by_class(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the number of chosen images of each class; an image of several classes counts for each of them."""
        return count_labels(self.label[chosen], self.label_sets, len(self.classes))

    def reason_of(self, index: int) -> str:
        """Return the reason why an image cannot be read, empty for an image that can."""
        number = self.reason[index]
        return self.reasons[number] if number >= 0 else ""

    def take(self, chosen: NDArray[np.bool_], note: str) -> Manifest:
        """Return the manifest of the chosen images, with a note about those that are left out."""
        columns = {name: getattr(self, name)[chosen] for name in COLUMNS}
        packed = None if self.packed is None else self.packed.take(chosen)
        return replace(
            self, paths=self.paths.take(chosen), packed=packed, notes=(*self.notes, note), **columns
        )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.encode(), "free space, or name another file with data.manifest=FILE")

    def encode(self) -> bytes:
        """Return the content of the file."""
        columns = _select(self, COLUMNS)
        columns |= {"text": self.paths.text, "ends": self.paths.ends}
        if self.label_sets is not None:
            columns[LABEL_SETS] = self.label_sets
        about = {
            "format": FORMAT,
            "root": os.fsencode(self.root).hex(),
            "classes": self.classes,
            "folders": [os.fsencode(folder).hex() for folder in self.folders],
            "notes": self.notes,
            "division": self.division,
            "called": self.called,
            "reasons": self.reasons,
            "formats": FORMATS,
            "pixels": [self.pixels.channels, self.pixels.bits],
            "rules": self.rules,
        }
        if self.packed is not None:
            columns |= _select(self.packed, PACKED)
            about["shards"] = self.packed.shards
        arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
        return safetensors.numpy.save(arrays, {"vitrail-manifest": json.dumps(about)})


def _select(holder: Manifest | Places, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the columns of some names."""
    return {name: getattr(holder, name) for name in names}


def load_manifest(path: Path) -> Manifest:
    """Open a manifest.

    Raises:
        DataError: It is not there, no manifest, or damaged.
    """
    how = (
        "pack data.root=FOLDER"
        if path.name == INDEX
        else "check-data data.root=FOLDER data.manifest=FILE"
    )
    advice = f"make it anew with `vitrail {how}`"
    if not path.is_file():
        raise DataError(f"{path}: there is no such manifest; {advice}")
    try:
        about, columns = _read_columns(path)
        manifest = _rebuild(about, columns)
        _check_columns(manifest)
        # later ones are added at the end
        if tuple(about["formats"]) != FORMATS[: len(about["formats"])]:
            raise ValueError("its formats are others")
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
        OverflowError,
        AttributeError,
        IndexError,
        SafetensorError,
    ) as error:
        raise DataError(
            f"{path}: is no manifest, or damaged ({' '.join(str(error).split())}); {advice}"
        ) from error
    return manifest


def _read_columns(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the description of a manifest, and its columns mapped into memory."""
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["vitrail-manifest"])
        if about["format"] != FORMAT:
            raise ValueError(f"of format {about['format']}, this vitrail reads format {FORMAT}")
        names = [*NAMES, *COLUMNS]
        if about.get("shards"):
            names += PACKED
        if LABEL_SETS in set(file.keys()):
            names.append(LABEL_SETS)
        return about, {name: file.get_tensor(name).numpy() for name in names}


def _rebuild(about: Mapping[str, Any], columns: dict[str, Any]) -> Manifest:
    paths = Paths(columns.pop("text"), columns.pop("ends"))
    shards = []
    for name, size, sha256 in about.get("shards", ()):
        shards.append(Shard(str(name), int(size), str(sha256)))
    packed = None
    if shards:
        packed = Places(
            tuple(shards), columns.pop("shard"), columns.pop("offset"), columns["bytes"]
        )
    called = tuple(about["called"]) if about.get("called") else None
    classes = tuple(map(canonical, about["classes"]))
    if len(set(classes)) < len(classes):
        raise ValueError("it names a class twice, in two forms of Unicode")
    return Manifest(
        root=Path(_decode_path(about["root"])),
        folders=(_decode_path(about["folders"][0]), _decode_path(about["folders"][1])),
        classes=classes,
        notes=tuple(about["notes"]),
        division=str(about["division"]),
        called=called,
        reasons=tuple(about["reasons"]),
        pixels=PixelFormat(*about.get("pixels", ())),
        rules=int(about.get("rules", 1)),
        paths=paths,
        packed=packed,
        **columns,
    )


def open_shards(root: Path, known: Manifest | None, pixels: PixelFormat = RGB) -> Manifest:
    """Return the manifest of the shards in a folder, with the inspection that was made since they were packed.

    Raises:
        DataError: The index is damaged; a shard is missing or has another length.
    """
    index = load_manifest(root / INDEX)
    if index.packed is None:
        raise DataError(
            f"{root / INDEX}: lists images in folders, not in shards; pack the folder anew"
        )
    index.packed.check_sizes(root)
    if (
        known is not None
        and known.packed is not None
        and known.packed.shards == index.packed.shards
    ):
        inspection = _select(known, FOUND)
        index = replace(
            index, reasons=known.reasons, pixels=known.pixels, rules=known.rules, **inspection
        )
    if (index.pixels, index.rules) != (pixels, RULES):
        # all images are to be inspected anew
        index = replace(
            index,
            pixels=pixels,
            rules=RULES,
            reason=np.full_like(index.reason, -1),
            inspected=np.zeros_like(index.inspected),
            findings=np.zeros_like(index.findings),
        )
    called = None
    if index.called is not None:
        train, val = index.called
        called = (
            f"{printable(root)}, packed from {train}",
            f"{printable(root)}, packed from {val}",
        )
    return replace(index, root=root, called=called)


def _decode_path(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text))


def _check_columns(manifest: Manifest) -> None:
    """Refuse columns that contradict each other, which would be read beyond their ends."""
    n = len(manifest.paths)
    for name, dtype in {**NAMES, **COLUMNS}.items():
        owner = manifest.paths if name in NAMES else manifest
        column = getattr(owner, name)
        has_length = name == "text" or len(column) == n
        dimensions = 2 if name == "content" else 1
        if column.dtype != dtype or not has_length or column.ndim != dimensions:
            raise ValueError(f"its column {name} does not fit")
    ends = manifest.paths.ends
    if n and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(manifest.paths.text)):
        raise ValueError("its names overlap")
    sets = manifest.label_sets
    if sets is not None and (
        sets.dtype != np.bool_ or sets.ndim != 2 or sets.shape[1] != len(manifest.classes)
    ):
        raise ValueError(f"its column {LABEL_SETS} does not fit")
    labels = len(manifest.classes) if sets is None else len(sets)
    ranges = (
        ("label", 0, labels),
        ("reason", -1, len(manifest.reasons)),
        ("part", TRAIN, VAL + 1),
    )
    for name, least, end in ranges:
        column = getattr(manifest, name)
        if n and not (column.min() >= least and column.max() < end):
            raise ValueError(f"its column {name} is out of range")
    if manifest.packed is not None:
        _check_places(manifest.packed, n)


def _check_places(places: Places, n: int) -> None:
    """Refuse places that lie outside of their shards."""
    for name, dtype in PACKED.items():
        column = getattr(places, name)
        if column.shape != (n,) or column.dtype != dtype:
            raise ValueError(f"its column {name} does not fit")
    if n and not (places.shard.min() >= 0 and places.shard.max() < len(places.shards)):
        raise ValueError("its column shard is out of range")
    sizes = np.array([shard.bytes for shard in places.shards])[places.shard]
    if ((places.offset < 0) | (places.bytes < 0) | (places.offset + places.bytes > sizes)).any():
        raise ValueError("its column offset is out of range")


def list_images(listing: Listing, known: Manifest | None, pixels: PixelFormat = RGB) -> Manifest:
    """Return the manifest of a listing, with the inspection of files that are unchanged in size and time.

    Folds are kept as well, so that an image that was trained on is never validated with.

    Args:
        listing: The images that are there.
        known: An earlier manifest of them.
        pixels: Pixel format that images are to be decoded to.
    """
    sources = [listing.train]
    if listing.val is not None:
        sources.append(listing.val)
    classes: dict[str, None] = {}
    notes: dict[str, None] = {}
    folders = []
    for source in sources:
        classes |= dict.fromkeys(source.classes)
        notes |= dict.fromkeys(source.notes)
        folders.append("/".join(source.folder.relative_to(listing.root).parts))
    called = None
    if listing.is_list:
        called = (sources[0].description, sources[-1].description)
    manifest = Manifest(
        root=listing.root,
        folders=(folders[0], folders[-1]),
        classes=tuple(classes),
        called=called,
        # in a list, both splits have the same classes and label sets
        label_sets=listing.train.label_sets,
        notes=tuple(notes),
        paths=Paths.of(chain.from_iterable(source.paths for source in sources)),
        pixels=pixels,
        **_make_columns(sources, tuple(classes)),
    )
    return manifest if known is None else _keep_known(manifest, known)


def _make_columns(sources: Sequence[FileSource], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of images that were not inspected yet, the sources one after the other."""
    n = sum(map(len, sources))
    columns: dict[str, Any] = {name: np.zeros(n, dtype) for name, dtype in COLUMNS.items()}
    columns["content"] = np.zeros((n, 2), COLUMNS["content"])
    columns["fold"][:] = -1
    columns["reason"][:] = -1
    number = {name: index for index, name in enumerate(classes)}
    end = 0
    for part, source in enumerate(sources):
        begin = end
        end += len(source)
        columns["part"][begin:end] = part
        if source.label_sets is not None:
            columns["label"][begin:end] = source.labels
        else:
            renumbered = np.array([number[name] for name in source.classes], np.int32)
            columns["label"][begin:end] = renumbered[source.labels]
        for index in range(len(source)):
            # what is gone since it was listed is found when it is read
            with contextlib.suppress(OSError):
                status = source.path(index).stat()
                columns["bytes"][begin + index] = status.st_size
                columns["mtime_ns"][begin + index] = status.st_mtime_ns
    return columns


def _keep_known(manifest: Manifest, known: Manifest) -> Manifest:
    """Return a manifest with the folds and the inspection of an earlier one, as far as they still hold."""
    places = known.places(manifest)
    here = np.flatnonzero(places >= 0)
    there = places[here]
    unchanged = (
        known.inspected[there]
        & (known.bytes[there] == manifest.bytes[here])
        & (known.mtime_ns[there] == manifest.mtime_ns[here])
        & ((known.pixels, known.rules) == (manifest.pixels, manifest.rules))
    )
    columns = {name: getattr(manifest, name).copy() for name in (*KEPT, *FOUND)}
    for name in KEPT:
        columns[name][here] = getattr(known, name)[there]
    for name in FOUND:
        columns[name][here[unchanged]] = getattr(known, name)[there[unchanged]]
    return replace(manifest, reasons=known.reasons, division=known.division, **columns)


def locate_cache(root: Path, train_split: str, val_split: str | None) -> Path:
    """Return the file in the user's cache that keeps the manifest of a folder for the next run on this machine."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    where = "\0".join((str(root.resolve()), train_split, val_split or ""))
    digest = hashlib.blake2b(os.fsencode(where), digest_size=8).hexdigest()
    return home / "vitrail" / "manifests" / f"{digest}.safetensors"
