"""`vitrail pack`: copy the images of a data set into tar shards with an index, for disks slow with many files."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vitrail.config.sections import DataSection
from vitrail.data.audit.findings import refuse_unreadable
from vitrail.data.audit.inspect_file import hash_content
from vitrail.data.audit.scan import check_images
from vitrail.data.folders import note_left_out, refuse_inside
from vitrail.data.manifest import Manifest, load_manifest
from vitrail.data.opening import open_manifest
from vitrail.data.shards import INDEX, Places, Shard
from vitrail.data.sources import TRAIN, VAL
from vitrail.display import Display
from vitrail.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    list_some,
    tell_count,
    write_option,
)
from vitrail.images.formats import ENDINGS
from vitrail.whole_folder import WholeFolder, recover

USUAL: dict[str, str] = {}
for _endings in ENDINGS.values():
    USUAL |= dict.fromkeys(_endings, _endings[0])
"""The file extension of each format that programs for WebDataset know, by any of its extensions."""
END = bytes(2 * tarfile.BLOCKSIZE)
"""Last bytes of a tar file."""
BETWEEN = 64
"""Images between two updates of the progress."""


@dataclass(frozen=True)
class Packed:
    """The result of `pack`."""

    folder: Path
    """Folder of the shards and their index."""
    manifest: Manifest
    shards: tuple[Shard, ...]
    replaced: bool
    """Whether earlier shards were replaced."""


def pack(section: DataSection, output: Path, shard_bytes: int, display: Display) -> Packed:
    """Copy the image files of a data set into tar shards, in the order of training, and write an index of them.

    Args:
        section: Which images. Unreadable ones are packed as well, unless data.bad_files is error or
            quarantine.
        output: Folder to write; an earlier one from the same images is replaced.
        shard_bytes: Most bytes of a shard, unless a single image exceeds it.
        display: Shows the progress.

    Raises:
        ConfigError: The data is a named set, or the output lies among the images.
        DataError: There are no images, or one of them changed meanwhile.
        CheckpointError: The output cannot be written, or is something else.
    """
    if section.name is not None:
        raise ConfigError(
            f"data.name is {section.name}, which has files of its own; set data.root or data.list "
            "to pack image files"
        )
    root = _find_root(section)
    refuse_inside(root, output)
    recover(output)
    look = None
    if section.check:
        look = partial(check_images, display=display, workers=section.workers)
    earlier = _list_earlier_files(output, root)
    folder = WholeFolder(
        output, earlier, f"free space or choose another folder with {write_option('output')}"
    )
    with folder.staged() as staging:
        manifest, problems = open_manifest(section, look)
        if problems:
            raise DataError(problems[0])
        manifest = _choose_images(manifest, section, display)
        display.begin("pack", len(manifest))
        with folder.refusal_told():
            places = _write_shards(manifest, staging, shard_bytes, display)
        display.end()
        manifest = replace(manifest, root=manifest.root.resolve(), packed=places)
        place, replaced = folder.publish({INDEX: manifest.encode()})
    return Packed(place, manifest, places.shards, replaced)


def _find_root(section: DataSection) -> Path:
    """Return the folder of the images."""
    if section.root is not None:
        return Path(section.root).expanduser()
    if section.list is not None:
        return Path(section.list).expanduser().parent
    assert section.manifest is not None
    return load_manifest(Path(section.manifest).expanduser()).root


def _list_earlier_files(output: Path, root: Path) -> Collection[str]:
    """Return the names of an earlier pack's files, which are the only ones that are replaced.

    Raises:
        CheckpointError: It was packed from other images.
    """
    try:
        index = load_manifest(output / INDEX)
    except DataError:
        return ()
    if index.root != root.resolve():
        raise CheckpointError(
            f"{output}: holds shards of {index.root}, and is not replaced; "
            f"choose another folder with {write_option('output')}"
        )
    shards = index.packed.shards if index.packed is not None else ()
    return {INDEX, *(shard.name for shard in shards)}


def _choose_images(manifest: Manifest, section: DataSection, display: Display) -> Manifest:
    """Return the images to pack, by data.bad_files, and tell the user which are left out or unreadable."""
    # shards have no folders beside them, and a list names all that it wants
    if manifest.packed is None and manifest.called is None:
        for note in note_left_out(manifest.root, manifest.folders):
            display.note(note)
    bad = manifest.unreadable
    if not bad.any():
        return manifest
    names = list(map(manifest.name, np.flatnonzero(bad).tolist()))
    if section.bad_files == "error":
        refuse_unreadable(manifest)
    if section.bad_files == "skip":
        display.warn(
            f"packed as it is, {tell_count(len(names), 'image')} that cannot be read: {list_some(names)}; "
            "training reads past and counts them, data.bad_files=quarantine leaves them out of the "
            "shards"
        )
        return manifest
    for part, folder in enumerate(manifest.folders):
        chosen = manifest.part == part
        if chosen.any() and bad[chosen].all():
            raise DataError(
                f"{manifest.root / folder}: none of its {chosen.sum()} images can be read"
            )
    note = (
        f"left out of the shards, {tell_count(len(names), 'image')} that cannot be read: "
        f"{list_some(names)}"
    )
    if manifest.division:
        display.warn(
            f"the shards keep the division by {manifest.division}; any other is made without the "
            "images left out, and holds out others than in the folder"
        )
    return manifest.take(~bad, note)


def _write_shards(manifest: Manifest, folder: Path, shard_bytes: int, display: Display) -> Places:
    """Write all shards, each flushed to the disk, and return where the images lie in them."""
    shards: list[Shard] = []
    shard = np.zeros(len(manifest), np.int32)
    offset = np.zeros(len(manifest), np.int64)
    written = 0
    for name, images in _divide_into_shards(manifest, shard_bytes):
        digest = hashlib.sha256()
        size = 0
        with (folder / name).open("wb") as stream:
            for index in images:
                blocks = _make_blocks(manifest, index)
                shard[index] = len(shards)
                offset[index] = size + len(blocks[0])  # behind the header
                for block in blocks:
                    stream.write(block)
                    digest.update(block)
                    size += len(block)
                if index % BETWEEN == BETWEEN - 1:
                    display.advance(BETWEEN, written=f"{(written + size) / 1e9:,.1f} GB")
            stream.write(END)
            digest.update(END)
            stream.flush()
            os.fsync(stream.fileno())
        shards.append(Shard(name, size + len(END), digest.hexdigest()))
        written += shards[-1].bytes
    return Places(tuple(shards), shard, offset, manifest.bytes)


def _divide_into_shards(manifest: Manifest, shard_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each shard and its images; no shard has images of both splits."""
    names = ("train", "val") if manifest.has_val else ("images",)
    block = tarfile.BLOCKSIZE
    # bytes of the image, its header, the label and the label's header
    needed = (-(-manifest.bytes // block) * block + 3 * block).tolist()
    for part, name in zip((TRAIN, VAL), names, strict=False):
        number = 0
        size = len(END)
        images = []
        for index in np.flatnonzero(manifest.part == part).tolist():
            if images and size + needed[index] > shard_bytes:
                yield f"{name}-{number:06d}.tar", images
                number += 1
                size = len(END)
                images = []
            images.append(index)
            size += needed[index]
        yield f"{name}-{number:06d}.tar", images


def _make_blocks(manifest: Manifest, index: int) -> list[bytes]:
    """Return an image and its label as they stand in a tar file: header, content and padding of each.

    Their names are numbers: WebDataset takes a name to end at its first point, and two files may
    differ behind it. The label is the number of the class, or for multi-label data a JSON list of
    them.
    """
    label = int(manifest.label[index])
    if manifest.label_sets is None:
        label_file = (".cls", str(label).encode())
    else:
        classes = np.flatnonzero(manifest.label_sets[label]).tolist()
        label_file = (".json", json.dumps(classes).encode())
    suffix = manifest.path(index).suffix.lower()
    image_file = (USUAL.get(suffix, suffix), _read(manifest, index))
    blocks = []
    for ending, content in (image_file, label_file):
        header = tarfile.TarInfo(f"{index:09d}{ending}")
        header.size = len(content)
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        blocks += [header.tobuf(tarfile.GNU_FORMAT), content, padding]
    return blocks


def _read(manifest: Manifest, index: int) -> bytes:
    """Return the bytes of an image's file, which must be those that were listed and inspected."""
    path = manifest.path(index)
    try:
        data = manifest.read(index)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); mend or remove it, and pack again"
        ) from error
    has_changed = len(data) != manifest.bytes[index]
    if manifest.inspected[index] and not has_changed:
        has_changed = hash_content(data) != manifest.content[index].tobytes()
    if has_changed:
        raise DataError(
            f"{path}: has changed since it was listed; `touch` it if that is meant to be, and pack "
            "again"
        )
    return data
