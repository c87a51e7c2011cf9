"""A folder of images packed into tar shards: few big files, the same images, and an index that knows all of them."""

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
from vitrail.data.audit.inspect_file import content_hash
from vitrail.data.audit.scan import check_images
from vitrail.data.folders import left_out, refuse_inside
from vitrail.data.manifest import TRAIN, VAL, Manifest, load_manifest
from vitrail.data.opening import open_manifest
from vitrail.data.shards import INDEX, Places, Shard
from vitrail.display import Display
from vitrail.errors import CheckpointError, ConfigError, DataError, few
from vitrail.images.decoding import ENDINGS
from vitrail.whole_folder import WholeFolder, recover

USUAL = {ending: endings[0] for endings in ENDINGS.values() for ending in endings}
"""The ending by which programs that read WebDataset know a format."""
END = bytes(2 * tarfile.BLOCKSIZE)
"""What ends a tar file."""
BETWEEN = 64
"""Images between two looks at the progress."""


@dataclass(frozen=True)
class Packed:
    """What was packed, and where it lies."""

    folder: Path
    manifest: Manifest
    shards: tuple[Shard, ...]
    replaced: bool


def pack(section: DataSection, output: Path, shard_bytes: int, display: Display) -> Packed:
    """Copy the image files of a data set into tar shards, in the order of training, and write an index of them.

    Args:
        section: Which images. Unreadable ones are packed as well, but for data.bad_files=error and quarantine.
        output: Folder to write; an earlier one from the same images is replaced.
        shard_bytes: Size that a shard does not exceed, unless a single image does.
        display: For the progress.

    Raises:
        ConfigError: The data is a named set, or the output lies among the images.
        DataError: There are no images, or one of them changed meanwhile.
        CheckpointError: The output cannot be written, or is something else.
    """
    if section.name is not None:
        raise ConfigError(
            f"data.name is {section.name}, which has files of its own; set data.root or data.list to pack image files"
        )
    root = Path(section.root).expanduser() if section.root is not None else _root_of(section)
    refuse_inside(root, output)
    recover(output)
    folder = WholeFolder(output, _earlier(output, root), "free space or choose another folder with --output")
    with folder.staged() as staging:
        look = partial(check_images, display=display, workers=section.workers) if section.check else None
        manifest, problems = open_manifest(section, look)
        if problems:
            raise DataError(problems[0])
        manifest = _wanted(manifest, section, display)
        display.begin("pack", len(manifest))
        with folder.refusal_told():
            places = _write(manifest, staging, shard_bytes, display)
        display.end()
        manifest = replace(manifest, root=manifest.root.resolve(), packed=places)
        place, replaced = folder.publish({INDEX: manifest.encode()})
    return Packed(place, manifest, places.shards, replaced)


def _root_of(section: DataSection) -> Path:
    if section.list is not None:
        return Path(section.list).expanduser().parent
    assert section.manifest is not None
    return load_manifest(Path(section.manifest).expanduser()).root


def _earlier(output: Path, root: Path) -> Collection[str]:
    """Return the files of an earlier pack, which are the only ones that are replaced.

    Raises:
        CheckpointError: It was packed from other images.
    """
    try:
        index = load_manifest(output / INDEX)
    except DataError:
        return ()
    if index.root != root.resolve():
        raise CheckpointError(
            f"{output}: holds shards of {index.root}, and is not replaced; choose another folder with --output"
        )
    shards = index.packed.shards if index.packed is not None else ()
    return {INDEX, *(shard.name for shard in shards)}


def _wanted(manifest: Manifest, section: DataSection, display: Display) -> Manifest:
    """Return what is to be packed, and say what is not, or had better not be."""
    if manifest.packed is None and manifest.called is None:  # a list leaves out what it does not name
        for note in left_out(manifest.root, manifest.folders):
            display.note(note)
    bad = manifest.unreadable
    if not bad.any():
        return manifest
    names = [manifest.name(index) for index in np.flatnonzero(bad).tolist()]
    if section.bad_files == "error":
        refuse_unreadable(manifest)
    if section.bad_files == "skip":
        display.warn(
            f"{len(names)} images that cannot be read are packed as they are: {few(names)}; training reads past and "
            "counts them, data.bad_files=quarantine leaves them out of the shards"
        )
        return manifest
    for part, folder in enumerate(manifest.folders):
        if (chosen := manifest.part == part).any() and bad[chosen].all():
            raise DataError(f"{manifest.root / folder}: none of its {chosen.sum()} images can be read")
    note = f"{len(names)} images that cannot be read were left out of the shards: {few(names)}"
    if manifest.division:
        display.warn(
            f"the shards keep the division by {manifest.division}; any other is made without the images left out, and "
            "holds out others than in the folder"
        )
    return manifest.take(~bad, note)


def _write(manifest: Manifest, folder: Path, shard_bytes: int, display: Display) -> Places:
    """Write all shards, each of them pushed to the disk."""
    shards: list[Shard] = []
    shard, offset = np.zeros(len(manifest), np.int32), np.zeros(len(manifest), np.int64)
    written = 0
    for name, images in _divided(manifest, shard_bytes):
        digest, size = hashlib.sha256(), 0
        with (folder / name).open("wb") as stream:
            for index in images:
                blocks = _blocks(manifest, index)
                shard[index], offset[index] = len(shards), size + len(blocks[0])
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


def _divided(manifest: Manifest, shard_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each shard and its images; no shard has images of both parts."""
    names = ("train", "val") if (manifest.part == VAL).any() else ("images",)
    block = tarfile.BLOCKSIZE
    # of the image, its header, the label and the label's header
    needed = (-(-manifest.bytes // block) * block + 3 * block).tolist()
    for part, name in zip((TRAIN, VAL), names, strict=False):
        number, size, images = 0, len(END), []
        for index in np.flatnonzero(manifest.part == part).tolist():
            if images and size + needed[index] > shard_bytes:
                yield f"{name}-{number:06d}.tar", images
                number, size, images = number + 1, len(END), []
            images.append(index)
            size += needed[index]
        yield f"{name}-{number:06d}.tar", images


def _blocks(manifest: Manifest, index: int) -> list[bytes]:
    """Return an image and its label as they stand in a tar file.

    They are called by number: WebDataset takes a name to end at its first point, and two files may differ behind it.
    The label is the number of the class, or where an image may have several a JSON list of them.
    """
    label = int(manifest.label[index])
    several = None if manifest.label_sets is None else np.flatnonzero(manifest.label_sets[label]).tolist()
    suffix = manifest.path(index).suffix.lower()
    blocks = []
    for ending, content in (
        (USUAL.get(suffix, suffix), _read(manifest, index)),
        (".cls", str(label).encode()) if several is None else (".json", json.dumps(several).encode()),
    ):
        header = tarfile.TarInfo(f"{index:09d}{ending}")
        header.size = len(content)
        blocks += [header.tobuf(tarfile.GNU_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)]
    return blocks


def _read(manifest: Manifest, index: int) -> bytes:
    """Return the bytes of an image, which must be those that were listed and looked at."""
    path = manifest.path(index)
    try:
        data = manifest.read(index)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it, and pack again") from error
    if len(data) != manifest.bytes[index] or (
        manifest.inspected[index] and content_hash(data) != manifest.content[index].tobytes()
    ):
        raise DataError(f"{path}: has changed since it was listed; `touch` it if that is meant to be, and pack again")
    return data
