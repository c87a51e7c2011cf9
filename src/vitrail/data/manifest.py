"""What is known of the images below a folder or in a list, written once and read by every process of every run.

A manifest is one safetensors file of columns, an entry an image. It is mapped, not read: processes share its pages, and
workers that fork copy nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
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
from vitrail.data.sources import FileSource, count_classes, label_name
from vitrail.errors import DataError, printable
from vitrail.files import write_whole
from vitrail.images.decoding import read_image
from vitrail.images.pixels import RGB, PixelFormat

FORMAT = 1
TRAIN, VAL = 0, 1
NAMES = {"text": np.uint8, "ends": np.int64}
"""Columns of the file that are a manifest's paths."""
LISTED = {"part": np.uint8, "label": np.int32, "bytes": np.int64, "mtime_ns": np.int64}
"""Columns that follow from listing the folders."""
KEPT = {"fold": np.int16}
"""Columns that an image keeps once it has them."""
FOUND = {
    "inspected": np.bool_, "findings": np.uint16, "reason": np.int32, "format": np.uint8, "width": np.int32,
    "height": np.int32, "content": np.uint64, "picture": np.uint64,
}  # fmt: skip
"""Columns that hold as long as the file does not change."""
PACKED = {"shard": np.int32, "offset": np.int64}
"""Columns of images in shards."""
COLUMNS = {**LISTED, **KEPT, **FOUND}
LABEL_SETS = "label_sets"


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifest:
    """Columns of n images, the training ones first, in the order that training numbers them."""

    root: Path
    folders: tuple[str, str]
    """Of the training and the validation images, below the root."""
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was read past when the images were listed."""
    division: str = ""
    """How images were parted, where there is no folder for validation."""
    called: tuple[str, str] | None = None
    """What the training and the validation images are called, where not by their folders."""
    label_sets: NDArray[np.bool_] | None = None
    """Where an image may have several classes: (m, k), which of them each label stands for."""
    reasons: tuple[str, ...] = ()
    """Why images cannot be read."""
    pixels: PixelFormat = RGB
    """What they were read as when they were looked at."""
    rules: int = RULES
    """By which rules they were looked at."""
    paths: Paths
    """Relative to the folder of their part."""
    part: NDArray[np.uint8]
    """TRAIN or VAL, by folder; all TRAIN where the images are divided."""
    fold: NDArray[np.int16]
    """Part of a division, -1 where there is none."""
    label: NDArray[np.int32]
    bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    inspected: NDArray[np.bool_]
    """Whether the rest is known."""
    findings: NDArray[np.uint16]
    """Sums of `Finding`."""
    reason: NDArray[np.int32]
    """Index into reasons, -1 for none."""
    format: NDArray[np.uint8]
    """Index into FORMATS."""
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    content: NDArray[np.uint64]
    """(n, 2): equal for equal files."""
    picture: NDArray[np.uint64]
    """Near for pictures that are alike."""
    packed: Places | None = None
    """Where the images lie in the shards of the root, if they lie in no folders."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """Which images cannot be read, as far as they were looked at."""
        return (self.findings & Finding.UNREADABLE) != 0

    @cached_property
    def hash(self) -> str:
        """Return 16 hexadecimal digits that change with any name, label, part, content or class."""
        digest = hashlib.blake2b("\n".join(self.classes).encode(), digest_size=8)
        for column in (self.paths.text, self.paths.ends, self.part, self.fold, self.label, self.bytes, self.content):
            digest.update(np.ascontiguousarray(column).data)
        if self.label_sets is not None:
            digest.update(np.ascontiguousarray(self.label_sets).data)
        return digest.hexdigest()

    def places(self, other: Manifest) -> NDArray[np.int64]:
        """Return where each image of another manifest stands in this one, -1 where it does not."""
        columns = [(m.paths.text, m.paths.ends, m.part) for m in (self, other)]
        if self.folders == other.folders and all(map(np.array_equal, *columns)):
            return np.arange(len(self))
        mine = {name: index for index, name in enumerate(self.names())}
        return np.fromiter((mine.get(name, -1) for name in other.names()), dtype=np.int64, count=len(other))

    def names(self) -> Iterator[bytes]:
        """Yield the names below the root."""
        before = [os.fsencode(folder) + b"/" if folder else b"" for folder in self.folders]
        return (before[part] + name for part, name in zip(self.part.tolist(), self.paths, strict=True))

    def path(self, index: int) -> Path:
        """Return where an image is; those in shards are named as if their folder lay beside them."""
        return self.root / self.folders[self.part[index]] / self.paths.name(index)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises OSError or, of a shard, UnreadableImage."""
        if self.packed is None:
            return read_image(self.path(index))
        return self.packed.read(self.root, index)

    def name(self, index: int) -> str:
        """Return an image's name below the root, with bytes that are no text escaped."""
        return printable(Path(self.folders[self.part[index]]) / self.paths.name(index))

    def source(self, part: int) -> FileSource:
        """Return the images of one folder, as they were listed."""
        chosen = self.part == part
        folder = self.root / self.folders[part]
        named = (self.called[part] if self.called else printable(folder), self.notes)
        columns = (folder, self.paths, self.label, self.classes, *named, self.label_sets)
        if self.packed is None:
            source = FileSource(*columns)
        else:
            source = ShardSource(*columns, root=self.root, places=self.packed)
        return source if chosen.all() else source.take(chosen, *named)

    def label_name(self, index: int) -> str:
        """Return the class of an image, or all of them."""
        return label_name(int(self.label[index]), self.classes, self.label_sets)

    def images_of_classes(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of the chosen images are of each class; one of several classes counts for each."""
        return count_classes(self.label[chosen], self.label_sets, len(self.classes))

    def reason_of(self, index: int) -> str:
        """Return why an image cannot be read."""
        return self.reasons[self.reason[index]] if self.reason[index] >= 0 else ""

    def take(self, chosen: NDArray[np.bool_], note: str) -> Manifest:
        """Return the manifest of a part of the images, with a note of what is left out."""
        columns = {name: getattr(self, name)[chosen] for name in COLUMNS}
        packed = None if self.packed is None else self.packed.take(chosen)
        return replace(self, paths=self.paths.take(chosen), packed=packed, notes=(*self.notes, note), **columns)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.encode(), "free space, or name another file with data.manifest=FILE")

    def encode(self) -> bytes:
        """Return the content of the file."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        columns |= {"text": self.paths.text, "ends": self.paths.ends}
        columns |= {} if self.label_sets is None else {LABEL_SETS: self.label_sets}
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
            columns |= {name: getattr(self.packed, name) for name in PACKED}
            about["shards"] = self.packed.shards
        arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
        return safetensors.numpy.save(arrays, {"vitrail-manifest": json.dumps(about)})


def load_manifest(path: Path) -> Manifest:
    """Open a manifest.

    Raises:
        DataError: It is not there, no manifest, or damaged.
    """
    how = "pack data.root=FOLDER" if path.name == INDEX else "check-data data.root=FOLDER data.manifest=FILE"
    advice = f"make it anew with `vitrail {how}`"
    if not path.is_file():
        raise DataError(f"{path}: there is no such manifest; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["vitrail-manifest"])
            if about["format"] != FORMAT:
                raise ValueError(f"of format {about['format']}, this vitrail reads format {FORMAT}")
            shards = tuple(Shard(str(name), int(size), str(sha256)) for name, size, sha256 in about.get("shards", ()))
            names = (*NAMES, *COLUMNS, *(PACKED if shards else ()), *({LABEL_SETS} & set(file.keys())))
            columns = {name: file.get_tensor(name).numpy() for name in names}
        paths = Paths(columns.pop("text"), columns.pop("ends"))
        packed = None
        if shards:
            packed = Places(shards, columns.pop("shard"), columns.pop("offset"), columns["bytes"])
        classes = tuple(map(canonical, about["classes"]))
        if len(set(classes)) < len(classes):
            raise ValueError("it names a class twice, in two forms of Unicode")
        manifest = Manifest(
            root=Path(_decoded(about["root"])),
            folders=(_decoded(about["folders"][0]), _decoded(about["folders"][1])),
            classes=classes,
            notes=tuple(about["notes"]),
            division=str(about["division"]),
            called=tuple(about["called"]) if about.get("called") else None,
            reasons=tuple(about["reasons"]),
            pixels=PixelFormat(*about.get("pixels", ())),
            rules=int(about.get("rules", 1)),
            paths=paths,
            packed=packed,
            **columns,
        )
        _check(manifest, about["formats"])
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
        raise DataError(f"{path}: is no manifest, or damaged ({' '.join(str(error).split())}); {advice}") from error
    return manifest


def open_shards(root: Path, known: Manifest | None, pixels: PixelFormat = RGB) -> Manifest:
    """Return the manifest of the shards in a folder, with what was found in them since they were packed.

    Raises:
        DataError: The index is damaged; a shard is missing or has another length.
    """
    index = load_manifest(root / INDEX)
    if index.packed is None:
        raise DataError(f"{root / INDEX}: lists images in folders, not in shards; pack the folder anew")
    index.packed.check_sizes(root)
    if known is not None and known.packed is not None and known.packed.shards == index.packed.shards:
        found = {name: getattr(known, name) for name in FOUND}
        index = replace(index, reasons=known.reasons, pixels=known.pixels, rules=known.rules, **found)
    if (index.pixels, index.rules) != (pixels, RULES):  # all is to be looked at anew
        unknown = {name: np.zeros_like(getattr(index, name)) for name in ("inspected", "findings")}
        index = replace(index, pixels=pixels, rules=RULES, reason=np.full_like(index.reason, -1), **unknown)
    first, second = index.called or ("", "")
    called = (f"{printable(root)}, packed from {first}", f"{printable(root)}, packed from {second}")
    return replace(index, root=root, called=called if index.called else None)


def _decoded(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text))


def _check(manifest: Manifest, formats: list[str]) -> None:
    """Refuse columns that contradict each other, which would be read beyond their ends."""
    n = len(manifest.paths)
    for name, dtype in {**NAMES, **COLUMNS}.items():
        column = getattr(manifest.paths if name in NAMES else manifest, name)
        if column.dtype != dtype or (name != "text" and len(column) != n) or column.ndim != 1 + (name == "content"):
            raise ValueError(f"its column {name} does not fit")
    ends = manifest.paths.ends
    if n and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(manifest.paths.text)):
        raise ValueError("its names overlap")
    sets = manifest.label_sets
    if sets is not None and (sets.dtype != np.bool_ or sets.ndim != 2 or sets.shape[1] != len(manifest.classes)):
        raise ValueError(f"its column {LABEL_SETS} does not fit")
    ranges = (
        ("label", 0, len(manifest.classes if sets is None else sets)),
        ("reason", -1, len(manifest.reasons)),
        ("part", TRAIN, VAL + 1),
    )
    for name, least, end in ranges:
        column = getattr(manifest, name)
        if n and not (column.min() >= least and column.max() < end):
            raise ValueError(f"its column {name} is out of range")
    if tuple(formats) != FORMATS[: len(formats)]:  # later ones are added at the end
        raise ValueError("its formats are others")
    if (places := manifest.packed) is not None:
        for name, dtype in PACKED.items():
            if getattr(places, name).shape != (n,) or getattr(places, name).dtype != dtype:
                raise ValueError(f"its column {name} does not fit")
        if n and not (places.shard.min() >= 0 and places.shard.max() < len(places.shards)):
            raise ValueError("its column shard is out of range")
        sizes = np.array([shard.bytes for shard in places.shards])[places.shard]
        if ((places.offset < 0) | (places.bytes < 0) | (places.offset + places.bytes > sizes)).any():
            raise ValueError("its column offset is out of range")


def list_images(listing: Listing, known: Manifest | None, pixels: PixelFormat = RGB) -> Manifest:
    """Return the manifest of what was listed, with what is known of files unchanged in size and time.

    The parts of a division are kept as well, so that an image that was trained on is never validated with.
    """
    sources = [listing.train, *([listing.val] if listing.val else [])]
    classes = tuple(dict.fromkeys(name for source in sources for name in source.classes))
    number = {name: index for index, name in enumerate(classes)}
    n = sum(map(len, sources))
    label_sets = listing.train.label_sets  # of a list, whose parts have the same classes and label sets
    columns: dict[str, Any] = {
        name: np.zeros((n, 2) if name == "content" else n, dtype) for name, dtype in COLUMNS.items()
    }
    columns["fold"][:] = columns["reason"][:] = -1
    end = 0
    for part, source in enumerate(sources):
        begin, end = end, end + len(source)
        columns["part"][begin:end] = part
        renumbered = np.array([number[name] for name in source.classes], np.int32)
        columns["label"][begin:end] = source.labels if label_sets is not None else renumbered[source.labels]
        for index in range(len(source)):
            with contextlib.suppress(OSError):  # what is gone since it was listed is found when it is read
                status = source.path(index).stat()
                columns["bytes"][begin + index] = status.st_size
                columns["mtime_ns"][begin + index] = status.st_mtime_ns
    train, val = ("/".join(s.folder.relative_to(listing.root).parts) for s in (sources[0], sources[-1]))
    manifest = Manifest(
        root=listing.root,
        folders=(train, val),
        classes=classes,
        called=(sources[0].description, sources[-1].description) if listing.is_list else None,
        label_sets=label_sets,
        notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
        paths=Paths.of(name for source in sources for name in source.paths),
        pixels=pixels,
        **columns,
    )
    return manifest if known is None else _with_known(manifest, known)


def _with_known(manifest: Manifest, known: Manifest) -> Manifest:
    there = known.places(manifest)
    here = np.flatnonzero(there >= 0)
    there = there[here]
    unchanged = (
        known.inspected[there]
        & (known.bytes[there] == manifest.bytes[here])
        & (known.mtime_ns[there] == manifest.mtime_ns[here])
        & ((known.pixels, known.rules) == (manifest.pixels, manifest.rules))
    )
    changed = {name: getattr(manifest, name).copy() for name in (*KEPT, *FOUND)}
    for name in KEPT:
        changed[name][here] = getattr(known, name)[there]
    for name in FOUND:
        changed[name][here[unchanged]] = getattr(known, name)[there[unchanged]]
    return replace(manifest, reasons=known.reasons, division=known.division, **changed)


def cache_file(root: Path, train_split: str, val_split: str | None) -> Path:
    """Return where the manifest of a folder is kept for the next run on this machine."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    where = "\0".join((str(root.resolve()), train_split, val_split or ""))
    digest = hashlib.blake2b(os.fsencode(where), digest_size=8).hexdigest()
    return home / "vitrail" / "manifests" / f"{digest}.safetensors"
