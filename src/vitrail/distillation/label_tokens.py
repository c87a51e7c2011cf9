"""`vitrail make-token-labels`: what a teacher says of every token of each training image, written to files of maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.choices import Device, Precision
from vitrail.config.commands import EmbedConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import DataSection
from vitrail.data.loader import Batch, ImageLoader, build_eval_loader
from vitrail.data.opening import list_files_read, open_data
from vitrail.data.sources import Source, fingerprint
from vitrail.data.tables.hub import pin_revision
from vitrail.display import Display
from vitrail.distillation.teacher import PLACES
from vitrail.distillation.token_maps import (
    ADVICE,
    KIND,
    LOCK,
    SHARD,
    MapFiles,
    MapLayout,
    open_map_folder,
)
from vitrail.distillation.token_teacher import TokenTeacher, open_token_teacher
from vitrail.distributed.processes import gather_texts, processes, share
from vitrail.embedding.store import fingerprint_contents, take_lock
from vitrail.errors import ConfigError, DataError, VitrailError, tell_count
from vitrail.evaluation.match import check_pixels
from vitrail.evaluation.settings import inherited_data
from vitrail.files import refusal_told
from vitrail.images.preprocess import normalise
from vitrail.inference.network import read_artifact
from vitrail.weights.loading import override_preprocess
from vitrail.weights.request import resolve_request

LONGEST_WAIT_MINUTES = 7 * 24 * 60.0
"""How long a process that has done its part waits for the others."""


@dataclass(frozen=True)
class Labelled:
    """What came of labelling tokens."""

    folder: Path
    teacher: str
    images: int
    grid: tuple[int, int]
    """Tokens of a map along height and width."""
    topk: int
    """Classes that are kept of a token."""
    bytes_per_image: int
    done_before: int
    """Images that were there already."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    data: dict[str, Any]
    """Settings of the data that the labels are of."""


def label_tokens(
    path: str,
    settings: Sequence[Layer],
    folder: Path,
    display: Display,
    *,
    topk: int,
    device: Device,
    precision: Precision,
) -> Labelled:
    """Write what a teacher says of every token of each training image. Collective.

    What a killed process has written is kept. Each process writes files of its own, which are equal
    for any number of processes.

    Args:
        path: The teacher's weight file, or the name of published weights.
        settings: Layers of settings of the sections weights, data and preprocess.
        folder: Folder to write.
        display: Shows progress, notes and warnings.
        topk: Classes to keep of a token.
        device: auto takes the accelerator, where there is one.
        precision: Precision of the computation.

    Raises:
        CheckpointError: The teacher's file is damaged, or the folder cannot be written.
        ConfigError: The teacher cannot label tokens, or the folder has other labels.
        DataError: There are no images, the teacher lacks classes, or data.bad_files is error and an
            image cannot be read.
    """
    artifact = read_artifact(path, None, resolve_request(settings), display=display)
    record = artifact.record
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    layers = [*inherited_data(record, settings), Layer("weight file", {"data": pixels}), *settings]
    resolved = resolve(EmbedConfig, layers)
    config = resolved.config
    check_pixels(record, config.data, path)
    preprocess = override_preprocess(record.preprocess, config.preprocess, display)
    with processes("float32", device, LONGEST_WAIT_MINUTES) as accelerator, ExitStack() as exits:
        section, source = open_training_images(config.data, accelerator, display)
        teacher = open_token_teacher(
            artifact, preprocess, source.classes, accelerator.device, precision, display
        )
        layout = MapLayout(len(source.classes), topk, teacher.grid)
        about = describe_maps(teacher, section, source, layout)
        share_opened(folder, about, accelerator, exits)
        files = MapFiles(folder, layout, len(source))
        size = layout.record.itemsize
        kept = layout.of_token.kept
        fewer = f" (all there are, where topk is {topk})" if kept < topk else ""
        display.note(
            f"{teacher.grid[0]}x{teacher.grid[1]} tokens an image, {kept} classes each{fewer}: "
            f"{size:,} bytes an image, {size * len(source) / 1e6:,.1f} MB for "
            f"{tell_count(len(source), 'image')}"
        )
        written, bad = _write_part(teacher, source, files, section, accelerator, display)
        every_bad = tuple(sorted({(name, why) for name, why in gather_texts(accelerator, bad)}))
        total = sum(gather_texts(accelerator, [written]))
    return Labelled(
        folder=folder,
        teacher=artifact.path,
        images=len(source),
        grid=teacher.grid,
        topk=layout.of_token.kept,
        bytes_per_image=size,
        done_before=len(source) - total,
        bad_files=every_bad,
        data={key: getattr(section, key) for key in ("name", "root", "list")},
    )


def open_training_images(
    section: DataSection, accelerator: Accelerator, display: Display
) -> tuple[DataSection, Source]:
    """Return the images that a training with such settings trains on, and the settings with what was found out.

    Raises:
        ConfigError: An image has any number of classes.
    """
    pinned: DataSection = share(
        accelerator, pin_revision(section) if accelerator.is_main_process else None
    )
    with accelerator.local_main_process_first():  # which downloads for all
        data = open_data(pinned)
    for note in data.notes:
        display.note(note)
    refuse_sets(data.train)
    return pinned, data.train


def refuse_sets(source: Source) -> None:
    """Refuse images that have any number of classes each.

    Raises:
        ConfigError: They have.
    """
    if source.label_sets is not None:
        raise ConfigError(
            f"{source.description}: the images have any number of classes each, and a token label "
            "shares a token out among the classes; token labels are for images of one class"
        )


def describe_data(section: DataSection, source: Source) -> dict[str, Any]:
    """Return all that decides which images token labels are of, as plain values for JSON."""
    lists = {Path(file).expanduser() for file in (section.list, section.manifest) if file}
    images = (file for file in list_files_read(section, source) if file not in lists)
    return {
        "rows": len(source),
        "images": fingerprint(source),
        "contents": fingerprint_contents(source, images),
        "classes": list(source.classes),
    }


def describe_maps(
    teacher: TokenTeacher, section: DataSection, source: Source, layout: MapLayout
) -> dict[str, Any]:
    """Return all that decides token labels, as plain values for JSON."""
    return {
        "kind": KIND,
        "teacher": teacher.description,
        "data": describe_data(section, source),
        "grid": list(layout.grid),
        "topk": layout.of_token.kept,
    }


def share_opened(
    folder: Path, about: dict[str, Any], accelerator: Accelerator, exits: ExitStack
) -> None:
    """Let the first process make or look at the folder, and lock it. Collective.

    Raises:
        ConfigError: Another command writes there, or it has something else.
    """
    outcome: VitrailError | None = None
    if accelerator.is_main_process:
        try:
            with refusal_told(folder, None, ADVICE):
                folder.mkdir(parents=True, exist_ok=True)
            open_map_folder(folder, about)
            lock = exits.enter_context((folder / LOCK).open("ab"))
            if not take_lock(lock.fileno()):
                raise ConfigError(
                    f"{folder}: another process writes token labels there; wait for its end, or "
                    "end it"
                )
        except VitrailError as error:
            outcome = error
    outcome = share(accelerator, outcome)
    if outcome is not None:
        raise outcome


def _write_part(
    teacher: TokenTeacher,
    source: Source,
    files: MapFiles,
    section: DataSection,
    accelerator: Accelerator,
    display: Display,
) -> tuple[int, list[tuple[str, str]]]:
    """Write the files of this process; return how many images were computed, and those that cannot be read."""
    shards = range(accelerator.process_index, files.shards, accelerator.num_processes)
    batches: list[range] = []
    total = 0
    for shard in shards:
        done, is_damaged = files.count_done(shard)
        places = files.places(shard)
        total += len(places)
        if is_damaged:
            display.warn(
                f"{files.path(shard)}: is damaged; what follows its first {done:,} images is made "
                "anew"
            )
        begins = range(places.start + done, places.stop, PLACES)
        batches += [range(begin, min(begin + PLACES, places.stop)) for begin in begins]
    left = sum(map(len, batches))
    display.begin("label tokens", total, total - left)
    bad: list[tuple[str, str]] = []
    if batches:
        loader = build_eval_loader(
            source,
            teacher.preprocess,
            batch_size=PLACES,
            workers=section.workers,
            bad_files=section.bad_files,
            pin_memory=accelerator.device.type == "cuda",
            batches=batches,
        )
        bad = _write_batches(teacher, loader, batches, files, display)
    display.end()
    if len(bad) == files.images:
        raise DataError(
            f"none of the {files.images:,} images could be read; the first is {bad[0][0]} "
            f"({bad[0][1]})"
        )
    return left, bad


def _write_batches(
    teacher: TokenTeacher,
    loader: ImageLoader,
    batches: Sequence[range],
    files: MapFiles,
    display: Display,
) -> list[tuple[str, str]]:
    """Label batches in their order, each behind what its file has; return the images that cannot be read."""
    bad: list[tuple[str, str]] = []
    file: IO[bytes] | None = None
    shard = -1
    with ExitStack() as exits:
        for places, batch in zip(batches, loader, strict=True):
            records = _label_batch(teacher, batch, places, files.layout)
            if places.start // SHARD != shard:
                exits.close()
                shard = places.start // SHARD
                file = exits.enter_context(files.open_for(shard, places.start % SHARD))
            assert file is not None
            with refusal_told(files.path(shard), None, ADVICE):
                file.write(records.tobytes())
                file.flush()
            bad += batch.bad
            display.advance(len(places))
    return bad


def _label_batch(
    teacher: TokenTeacher, batch: Batch, places: range, layout: MapLayout
) -> NDArray[Any]:
    """Return the records of a batch; those of images that cannot be read are empty."""
    records = np.zeros(len(places), layout.record)
    if len(batch.indices):
        device = next(teacher.model.parameters()).device
        own = teacher.preprocess
        pixels = batch.images.to(device, non_blocking=True)
        logits = teacher.label(normalise(pixels, own.mean, own.std))
        at = batch.indices - places.start
        records[at.numpy()] = layout.pack(batch.indices.tolist(), logits)
    unread = [number for number, one in enumerate(records) if not one["is_known"]]
    for number in unread:
        records[number : number + 1] = layout.seal(
            [places[number]], records[number : number + 1].copy()
        )
    return records
