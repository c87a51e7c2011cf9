"""`vitrail resize-data`: make the images of a folder smaller once, so that every epoch reads and decodes less."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.config.sections import DataSection
from vitrail.data.folders import (
    MARK,
    Listing,
    find_splits,
    note_hidden,
    note_left_out,
    read_changes,
    refuse_inside,
    scan,
)
from vitrail.data.loader import count_usable_cores, with_workers
from vitrail.data.lost_workers import until_lost
from vitrail.data.manifest import Manifest, list_images
from vitrail.data.shards import has_shards
from vitrail.display import Display
from vitrail.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    printable,
    write_option,
)
from vitrail.files import write_whole
from vitrail.images.decoding import Header, decode_quietly, read_header
from vitrail.images.pixels import RGB, PixelFormat, UnreadableImage
from vitrail.images.tiff_tags import ORIENTATION

USED = ("root", "train_split", "val_split", "channels", "bits", "workers", "bad_files")
"""Settings of the section data that have a meaning here."""
WRITTEN = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "BMP": "BMP", "PPM": "PPM"}
"""Formats that are resized, and the formats they are written in; the first picture of an MPO is the
image."""
BATCH = 32
"""Images that a worker resizes at a time."""


@dataclass
class Resized:
    """The result of `resize_data`."""

    folder: Path
    """The new folder."""
    resized: int = 0
    """Number of images that were made smaller."""
    copied: Counter[str] = field(default_factory=Counter)
    """Number of images that were copied byte for byte, by the reason."""
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """Index, name and reason of each unreadable image."""
    before: int = 0
    """Bytes of all readable images, as they were."""
    after: int = 0
    """Bytes of the images that were written."""


@dataclass(frozen=True, slots=True)
class _Done:
    """The result for one image."""

    index: int
    kept: str = ""
    """Reason why it was copied; empty where it was resized."""
    bad: str = ""
    """Reason why it cannot be read; empty where it can."""
    refused: int = 0
    """Number of the system's error when it was to be written; 0 for none."""
    before: int = 0
    """Bytes of the image as it was."""
    after: int = 0
    """Bytes of the image that was written."""


def resize_data(
    section: DataSection, output: Path, short_side: int, quality: int, display: Display
) -> Resized:
    """Write a folder's images anew, with a short side of at most so many pixels, under the same names.

    An interrupted call is continued by the next. The files are the same for any number of workers.

    Args:
        section: Which folder; data.bad_files=skip copies unreadable files as they are, quarantine
            leaves them out.
        output: Folder to write, which must not be there yet.
        short_side: Pixels of the short side; smaller images are copied.
        quality: Quality of JPEG and lossy WebP, up to 100.
        display: Shows the progress.

    Raises:
        ConfigError: A setting has no meaning here, or the output lies among the images.
        DataError: There are no images, or one cannot be read and data.bad_files is "error".
        CheckpointError: The output is there already, or cannot be written.
        Interrupted: Ctrl-C was pressed.
    """
    root = _check(section, output)
    manifest = _list(root, section, display)
    partial = _partial_folder(output)
    change = {
        "short_side": short_side,
        "filter": "Lanczos",
        "quality": quality,
        "from": printable(root.resolve()),
        "vitrail": version("vitrail"),
    }
    mark = {"changes": [*read_changes(root), change]}
    again = f"free space or choose another folder with {write_option('output')}; the same command goes on where it was"
    done = Resized(output)
    try:
        _begin(partial, {**mark, "images": manifest.hash}, display)
        _resize_all(_Images(manifest, partial, short_side, quality), section, done, display)
        _write_bad_files(manifest, partial, section, done)
        # workers that were killed leave files behind
        for leftover in partial.glob(".*.tmp"):
            leftover.unlink()
        os.sync()
        write_whole(partial / MARK, (json.dumps(mark, indent=1) + "\n").encode(), again)
        partial.rename(output)
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; the same command goes on with what is in {partial}") from error
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error.strerror}); {again}") from error
    finally:
        display.end()
    return done


def _write_bad_files(
    manifest: Manifest, partial: Path, section: DataSection, done: Resized
) -> None:
    """Copy unreadable files if they are to be kept, and remove what was written while they could be read."""
    for index, _, _ in done.bad:
        target = _target(manifest, index, partial)
        target.unlink(missing_ok=True)
        if section.bad_files == "skip":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_read_bad(manifest, index))


def _check(section: DataSection, output: Path) -> Path:
    """Return the folder to read, and refuse settings and folders that cannot be followed."""
    for key, value in vars(section).items():
        if key not in USED and value != getattr(DataSection, key):
            advice = ""
            if key == "list":
                advice = "; resize the folder of its images by data.root, and give the list with the new data.root"
            raise ConfigError(
                f"data.{key} is {value}: has no meaning here; used are {', '.join(USED)}{advice}"
            )
    assert section.root is not None
    root = Path(section.root).expanduser()
    if has_shards(root):
        raise ConfigError(
            f"data.root {root}: holds shards; resize the folder they were packed from, and pack "
            "that"
        )
    refuse_inside(root, output)
    # the partial folder is removed where it was begun with other settings
    if Path(os.path.realpath(root)).is_relative_to(os.path.realpath(_partial_folder(output))):
        raise ConfigError(
            f"data.root {root}: lies where {write_option('output', output)} is begun, and would be "
            f"removed; rename it, or choose another folder with {write_option('output')}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output}: is there already, and is not replaced; choose another folder with "
            f"{write_option('output')}"
        )
    return root


def _partial_folder(output: Path) -> Path:
    """Return the folder that is written to until all is done."""
    return output.absolute().with_name(f".{output.name}.partial")


def _list(root: Path, section: DataSection, display: Display) -> Manifest:
    """List the images of both splits, or of the one that there is, and tell the user what else is there."""
    problems: list[str] = []
    splits = find_splits(root, section.train_split, section.val_split)
    sources = []
    for folder in splits:
        if folder is not None:
            sources.append(note_hidden(root, scan(folder, problems)))
    pixels = PixelFormat(section.channels, section.bits)
    val = sources[1] if len(sources) > 1 else None
    manifest = list_images(Listing(root, sources[0], val, ()), None, pixels)
    for note in (*manifest.notes, *note_left_out(root, manifest.folders)):
        display.note(note)
    for problem in problems:
        display.warn(problem)
    return manifest


def _begin(partial: Path, mark: object, display: Display) -> None:
    """Make the partial folder, or continue one that was begun with the same images and settings."""
    text = json.dumps(mark)
    with contextlib.suppress(FileNotFoundError):
        if (partial / MARK).read_text(encoding="utf-8") == text:
            display.note(f"goes on with what is in {partial}")
            return
        display.note(f"{partial}: was begun for other images or settings, and is removed")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / MARK).write_text(text, encoding="utf-8")


def _resize_all(images: _Images, section: DataSection, done: Resized, display: Display) -> None:
    """Resize all images by worker processes, and add up the results in `done`."""
    total = len(images.manifest)
    workers = count_usable_cores() if section.workers is None else section.workers
    if total <= BATCH:
        workers = 0
    loader = DataLoader(images, BATCH, **with_workers(workers), collate_fn=list)
    display.begin("resize", total)
    for batch in until_lost(loader.__iter__, loader.num_workers):
        for one in batch:
            _add_result(one, images.manifest, section, done)
        display.advance(len(batch), written=f"{done.after / 1e9:,.1f} GB")


def _add_result(one: _Done, manifest: Manifest, section: DataSection, done: Resized) -> None:
    """Count the result for one image.

    Raises:
        OSError: It could not be written.
        DataError: It cannot be read, and data.bad_files is "error".
    """
    if one.refused:
        raise OSError(one.refused, os.strerror(one.refused))
    done.before += one.before
    done.after += one.after
    if one.kept:
        done.copied[one.kept] += 1
    elif not one.bad:
        done.resized += 1
    elif section.bad_files == "error":
        raise DataError(
            f"{manifest.path(one.index)}: cannot be read, {one.bad}; repair or remove it, or set "
            "data.bad_files=skip to copy such files as they are, or quarantine to leave them out"
        )
    else:
        done.bad.append((one.index, manifest.name(one.index), one.bad))


@dataclass(frozen=True)
class _Images(Dataset[_Done]):
    """Resizes the image of an index, and writes it."""

    manifest: Manifest
    folder: Path
    """Folder to write to."""
    short_side: int
    quality: int

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> _Done:
        try:
            data = self.manifest.read(index)
            header = read_header(data)
            kept = find_reason_to_copy(header, data, self.short_side)
            size = _size_written(self.manifest, index, self.folder)
            content = b""
            if not size:
                content = self._make_content(data, header, kept)
        except UnreadableImage as error:
            return _Done(index, bad=str(error))
        except OSError as error:
            return _Done(index, bad=error.strerror or type(error).__name__)
        if not size:
            try:
                size = _write(self.manifest, index, self.folder, content)
            except OSError as error:
                return _Done(index, refused=error.errno or errno.EIO)
        return _Done(index, kept, before=len(data), after=size)

    def _make_content(self, data: bytes, header: Header, kept: str) -> bytes:
        if kept:
            decode_quietly(data, self.manifest.pixels)  # which fails for unreadable files
            return data
        # all that is resized is RGB or gray
        return shrink(decode_quietly(data, RGB), header, data, self.short_side, self.quality)


def find_reason_to_copy(header: Header, data: bytes, short_side: int) -> str:
    """Return the reason why an image is copied as it is, empty where it is to be resized."""
    reasons = {
        f"short side of at most {short_side}": min(header.width, header.height) <= short_side,
        f"{header.format} is not resized": header.format not in WRITTEN,
        "several frames": header.frames > 1 and header.format != "MPO",
        "more than 8 bits": header.bits > 8,
        "transparency": header.has_alpha,
        f"colours of mode {header.mode}": header.mode not in ("L", "RGB"),
        "EXIF in PNG": header.format == "PNG" and b"eXIf" in data,
    }
    for reason, applies in reasons.items():
        if applies:
            return reason
    return ""


def shrink(pixels: Tensor, header: Header, data: bytes, short_side: int, quality: int) -> bytes:
    """Return a smaller image file of the same format, with its EXIF orientation and colour profile as only metadata.

    JPEGs have their colours at full resolution (4:4:4): at half of it, quality 95 is no nearer to
    the pixels than 90.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if header.mode == "L":
        image = image.getchannel(0)
    scale = short_side / min(image.size)
    width, height = (max(round(side * scale), short_side) for side in image.size)
    options: dict[str, Any] = {}
    if header.profile:
        options["icc_profile"] = header.profile
    if header.orientation > 1:
        exif = Image.Exif()
        exif[ORIENTATION] = header.orientation
        options["exif"] = exif.tobytes()
    if header.format in ("JPEG", "MPO"):
        options |= {"quality": quality, "subsampling": 0}
    elif header.format == "WEBP":
        options |= {"quality": quality, "lossless": b"VP8L" in data}
    file = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.LANCZOS)
    smaller.save(file, WRITTEN[header.format], **options)
    return file.getvalue()


def _target(manifest: Manifest, index: int, folder: Path) -> Path:
    """Return the path of an image in the new folder."""
    return folder / manifest.path(index).relative_to(manifest.root)


def _size_written(manifest: Manifest, index: int, folder: Path) -> int:
    """Return the size of an image that an earlier call wrote and that has not changed since; 0 for others."""
    try:
        status = _target(manifest, index, folder).stat()
    except FileNotFoundError:
        return 0
    if status.st_mtime_ns != manifest.mtime_ns[index]:
        return 0
    return status.st_size


def _write(manifest: Manifest, index: int, folder: Path, content: bytes) -> int:
    """Write an image with the time of the original, by which a later call finds that it is up to date."""
    target = _target(manifest, index, folder)
    time = int(manifest.mtime_ns[index])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.tmp"
    temporary.write_bytes(content)
    os.utime(temporary, ns=(time, time))
    temporary.replace(target)
    return len(content)


def _read_bad(manifest: Manifest, index: int) -> bytes:
    try:
        return manifest.read(index)
    except OSError as error:
        raise DataError(
            f"{manifest.path(index)}: cannot be copied ({error.strerror}); remove it, or leave "
            "such files out with data.bad_files=quarantine"
        ) from error
