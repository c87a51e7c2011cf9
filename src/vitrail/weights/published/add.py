"""Add a file to the cache of published weights: recognised by what is in it, whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.display import Display
from vitrail.errors import CheckpointError, command, write_option
from vitrail.files import describe_absent, open_regular, write_whole
from vitrail.weights.checkpoint import KEY, hash_file
from vitrail.weights.formats.weight_file import WeightFile, open_weights
from vitrail.weights.published.cache import FULL, alone, examine, place_of, write_record
from vitrail.weights.published.catalogue import ROWS, Published, find_row
from vitrail.weights.request import LoadRequest
from vitrail.weights.search.find import find_weights

CHUNK = 2**22
NAMED_AGAIN = re.compile(r"( \(\d+\)|_\d)(?=\.)")
"""What browsers put into the name of a file that they download once more."""


@dataclass(frozen=True)
class Added:
    """A file that was added to the cache."""

    row: Published
    path: Path
    """Where it is in the cache."""
    by: str
    """What it was recognised by."""


def add_file(given: Path, display: Display, name: str | None = None) -> Added:
    """Copy a file that was downloaded elsewhere into the cache, once it is known which published weights it holds.

    Args:
        given: The file, or a folder of the Hub's with model.safetensors and config.json.
        display: Where notes are shown.
        name: Name of the published weights, where the content leaves that open.

    Raises:
        CheckpointError: It is no weight file, holds no published weights or those of several rows,
            or the cache cannot be written.
    """
    if absent := describe_absent(given):
        raise CheckpointError(f"{given}: {absent}; give a file that was downloaded elsewhere")
    file = open_weights(given)
    if KEY in file.metadata:
        raise CheckpointError(
            f"{given}: was written by vitrail, and is used by its path; nothing is to be added"
        )
    row, by = _recognise(file, name)
    place = place_of(row)
    with alone(row, display):
        examined = examine(row, file.path, source=str(file.path.absolute()))
        if not (place.exists() and place.samefile(file.path)):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, _read_chunks(file.path), FULL)
        fetched = examine(row, place, source=examined.source)
        if fetched.sha256 != examined.sha256:
            place.unlink()
            raise CheckpointError(
                f"{given}: changed while it was copied; add it again once it is whole"
            )
        write_record(row, fetched)
    return Added(row, place, by)


def _recognise(file: WeightFile, name: str | None) -> tuple[Published, str]:
    """Return the published weights that a file holds, and by what they are known."""
    sha256 = hash_file(file.path)
    hashed = [row for row in ROWS if row.hash_prefix and sha256.startswith(row.hash_prefix)]
    wanted = None if name is None else find_row(name)
    if name is not None and wanted is None:
        raise CheckpointError(
            f"{write_option('name', name)}: no published weights are called so; `vitrail weights` "
            "lists all"
        )
    if len(hashed) == 1 and wanted in (None, hashed[0]):
        return hashed[0], f"its SHA-256, which begins with {hashed[0].hash_prefix}"
    fitting = _find_fitting(file)
    if wanted is not None:
        if wanted.hash_prefix:
            raise CheckpointError(
                f"{file.path}: is not {wanted.name}, as its SHA-256 begins with {sha256[:8]} and "
                f"not with {wanted.hash_prefix}; download it again"
            )
        if wanted not in fitting:
            also = f"it fits {_list(fitting)}" if fitting else "it fits nothing that is published"
            raise CheckpointError(
                f"{file.path}: is not {wanted.name} by its kind and by the names and shapes of its "
                f"weights; {also}"
            )
        return wanted, "the name that was given, which its weights fit"
    if not fitting:
        raise CheckpointError(
            f"{file.path}: holds no published weights, or they were changed (SHA-256 "
            f"{sha256[:8]}...); it can be used "
            "by its path, and `vitrail weights` lists what is known"
        )
    if len(fitting) > 1:
        called = [row for row in fitting if row.file == NAMED_AGAIN.sub("", file.path.name)]
        if len(called) == 1:
            return called[0], f"its name, among {_list(fitting)}, which its weights fit alike"
        example = command("weights", "add", file.path, "--name", fitting[0].name)
        raise CheckpointError(
            f"{file.path}: fits {_list(fitting)} alike; say which it is, such as {example}"
        )
    return fitting[0], "the names and shapes of its weights, as its hash was not published"


def _find_fitting(file: WeightFile) -> list[Published]:
    """Return the published weights that a file may hold, by its kind and by the names and shapes in it.

    Those whose hash is known are not among them.
    """
    try:
        readings = find_weights(file, LoadRequest(two_logits=False)).readings
    except CheckpointError:
        return []
    fitting = []
    for row in ROWS:
        if row.hash_prefix or row.kind != file.kind:
            continue
        for reading in readings:
            config = reading.config
            is_of_size = (config.num_classes, config.size) == (
                row.num_classes,
                (row.image_size, row.image_size),
            )
            is_of_project = row.dialect in reading.dialect.projects
            if reading.is_whole and reading.model == row.model and is_of_size and is_of_project:
                fitting.append(row)
                break
    return fitting


def _list(rows: Sequence[Published]) -> str:
    return ", ".join(row.name for row in rows)


def _read_chunks(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk
