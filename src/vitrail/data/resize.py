"""A folder of images made smaller once, so that every epoch has less to read and decode; the folder says so itself."""

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
from vitrail.data.folders import MARK, Listing, changes, find_splits, left_out, note_hidden, refuse_inside, scan
from vitrail.data.loader import leave_signals, until_lost, usable_cores
from vitrail.data.manifest import Manifest, list_images
from vitrail.data.shards import has_shards
from vitrail.display import Display
from vitrail.errors import CheckpointError, ConfigError, DataError, Interrupted, printable
from vitrail.files import write_whole
from vitrail.images.decoding import Header, decode_quietly, read_header
from vitrail.images.pixels import RGB, PixelFormat, UnreadableImage
from vitrail.images.tiff import ORIENTATION

USED = ("root", "train_split", "val_split", "channels", "bits", "workers", "bad_files")
"""Settings of data that have a meaning here."""
WRITTEN = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "BMP": "BMP", "PPM": "PPM"}
"""Formats that are resized, and as what they are written; of the pictures in an MPO, the first is the image."""
BATCH = 32


@dataclass
class Resized:
    """What became of a folder's images."""

    folder: Path
    resized: int = 0
    copied: Counter[str] = field(default_factory=Counter)
    """How many were copied byte for byte, by the reason."""
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, name and reason of each that could not be read."""
    before: int = 0
    """Bytes of those that could be read."""
    after: int = 0


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one image."""

    index: int
    kept: str = ""
    """Why it was copied; empty where it was resized."""
    bad: str = ""
    refused: int = 0
    """The number of the system's error when it was to be written."""
    before: int = 0
    after: int = 0


def resize_data(section: DataSection, output: Path, short_side: int, quality: int, display: Display) -> Resized:
    """Write a folder's images anew, with a short side of at most so many pixels, under the same names.

    What was stopped goes on when it is called again. The files are the same for any number of workers.

    Args:
        section: Which folder; data.bad_files=skip copies unreadable files as they are, quarantine leaves them out.
        output: Folder to write, which must not be there yet.
        short_side: Pixels; smaller images are copied.
        quality: Of JPEG and lossy WebP, to 100.
        display: For the progress.

    Raises:
        ConfigError: A setting has no meaning here, or the output lies among the images.
        DataError: There are no images, or one cannot be read and data.bad_files is "error".
        CheckpointError: The output is there already, or cannot be written.
        Interrupted: By Ctrl-C.
    """
    root = _check(section, output)
    manifest = _list(root, section, display)
    partial = _begun(output)
    change = {
        "short_side": short_side, "filter": "Lanczos", "quality": quality, "from": printable(root.resolve()),
        "vitrail": version("vitrail"),
    }  # fmt: skip
    mark = {"changes": [*changes(root), change]}
    again = "free space or choose another folder with --output; the same command goes on where it was"
    done = Resized(output)
    try:
        _begin(partial, {**mark, "images": manifest.hash}, display)
        _resize_all(_Images(manifest, partial, short_side, quality), section, done, display)
        for index, _, _ in done.bad:
            target = _target(manifest, index, partial)
            target.unlink(missing_ok=True)  # of a time when it could be read
            if section.bad_files == "skip":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_read_bad(manifest, index))
        for leftover in partial.glob(".*.tmp"):  # of workers that were killed
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


def _check(section: DataSection, output: Path) -> Path:
    """Return the folder to read, where all that was asked for can be done."""
    for key, value in vars(section).items():
        if key not in USED and value != getattr(DataSection, key):
            lists = "; resize the folder of its images by data.root, and give the list with the new data.root"
            raise ConfigError(
                f"data.{key} is {value}: has no meaning here; used are {', '.join(USED)}{lists * (key == 'list')}"
            )
    assert section.root is not None
    root = Path(section.root).expanduser()
    if has_shards(root):
        raise ConfigError(f"data.root {root}: holds shards; resize the folder they were packed from, and pack that")
    refuse_inside(root, output)
    if root.resolve().is_relative_to(_begun(output).resolve()):  # which is removed where it was begun otherwise
        raise ConfigError(
            f"data.root {root}: lies where --output {output} is begun, and would be removed; rename it, or choose "
            "another folder with --output"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: is there already, and is not replaced; choose another folder with --output")
    return root


def _begun(output: Path) -> Path:
    """Return where a folder is until it is whole."""
    return output.absolute().with_name(f".{output.name}.partial")


def _list(root: Path, section: DataSection, display: Display) -> Manifest:
    """List the images of both splits, or of the one that there is, and say what else is there."""
    problems: list[str] = []
    folders = [folder for folder in find_splits(root, section.train_split, section.val_split) if folder is not None]
    sources = [note_hidden(root, scan(folder, problems)) for folder in folders]
    pixels = PixelFormat(section.channels, section.bits)
    manifest = list_images(Listing(root, sources[0], sources[1] if len(sources) > 1 else None, ()), None, pixels)
    for note in (*manifest.notes, *left_out(root, manifest.folders)):
        display.note(note)
    for problem in problems:
        display.warn(problem)
    return manifest


def _begin(partial: Path, mark: object, display: Display) -> None:
    """Make the temporary folder, or go on with one that was begun for the same."""
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
    workers = usable_cores() if section.workers is None else section.workers
    total = len(images.manifest)
    used = workers if total > BATCH else 0
    loader = DataLoader(images, BATCH, num_workers=used, collate_fn=list, worker_init_fn=leave_signals)
    display.begin("resize", total)
    for batch in until_lost(loader.__iter__, loader.num_workers):
        for one in batch:
            if one.refused:
                raise OSError(one.refused, os.strerror(one.refused))
            done.before, done.after = done.before + one.before, done.after + one.after
            if one.kept:
                done.copied[one.kept] += 1
            elif one.bad:
                if section.bad_files == "error":
                    raise DataError(
                        f"{images.manifest.path(one.index)}: cannot be read, {one.bad}; repair or remove it, or set "
                        "data.bad_files=skip to copy such files as they are, or quarantine to leave them out"
                    )
                done.bad.append((one.index, images.manifest.name(one.index), one.bad))
            else:
                done.resized += 1
        display.advance(len(batch), written=f"{done.after / 1e9:,.1f} GB")


@dataclass(frozen=True)
class _Images(Dataset[_Done]):
    """Resizes an image when it is asked for it."""

    manifest: Manifest
    folder: Path
    short_side: int
    quality: int

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> _Done:
        try:
            data = self.manifest.read(index)
            header = read_header(data)
            kept = reason_to_copy(header, data, self.short_side)
            size = _size_written(self.manifest, index, self.folder)
            content = b"" if size else self._content(data, header, kept)
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

    def _content(self, data: bytes, header: Header, kept: str) -> bytes:
        # also of what is copied, so that all that cannot be read is known; what is not copied is RGB or gray
        pixels = decode_quietly(data, self.manifest.pixels if kept else RGB)
        return data if kept else shrink(pixels, header, data, self.short_side, self.quality)


def reason_to_copy(header: Header, data: bytes, short_side: int) -> str:
    """Return why an image is left as it is, or nothing where it is to be resized."""
    reasons = {
        f"short side of at most {short_side}": min(header.width, header.height) <= short_side,
        f"{header.format} is not resized": header.format not in WRITTEN,
        "several frames": header.frames > 1 and header.format != "MPO",
        "more than 8 bits": header.bits > 8,
        "transparency": header.has_alpha,
        f"colours of mode {header.mode}": header.mode not in ("L", "RGB"),
        "EXIF in PNG": header.format == "PNG" and b"eXIf" in data,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), "")


def shrink(pixels: Tensor, header: Header, data: bytes, short_side: int, quality: int) -> bytes:
    """Return an image file of the same format, with the same EXIF orientation and colour profile, and nothing else.

    JPEGs have their colours at full resolution (4:4:4): at half of it, quality 95 is no nearer to the pixels than 90.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if header.mode == "L":
        image = image.getchannel(0)
    scale = short_side / min(image.size)
    width, height = (max(round(side * scale), short_side) for side in image.size)
    options: dict[str, Any] = {"icc_profile": header.profile} if header.profile else {}
    if header.orientation > 1:
        exif = Image.Exif()
        exif[ORIENTATION] = header.orientation
        options["exif"] = exif.tobytes()
    if header.format in ("JPEG", "MPO"):
        options |= {"quality": quality, "subsampling": 0}
    elif header.format == "WEBP":
        options |= {"quality": quality, "lossless": b"VP8L" in data}
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(file, WRITTEN[header.format], **options)
    return file.getvalue()


def _target(manifest: Manifest, index: int, folder: Path) -> Path:
    return folder / manifest.path(index).relative_to(manifest.root)


def _size_written(manifest: Manifest, index: int, folder: Path) -> int:
    """Return the bytes of an image that was written before and has not changed since; 0 where it is to be written."""
    try:
        status = _target(manifest, index, folder).stat()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_mtime_ns == manifest.mtime_ns[index] else 0


def _write(manifest: Manifest, index: int, folder: Path, content: bytes) -> int:
    """Write an image with the time of the original, by which it is known to be its."""
    target, time = _target(manifest, index, folder), int(manifest.mtime_ns[index])
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
            f"{manifest.path(index)}: cannot be copied ({error.strerror}); remove it, or leave such files out with "
            "data.bad_files=quarantine"
        ) from error
