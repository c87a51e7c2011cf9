"""Resolve what may stand where a weight file goes, a path, a published name or a place on the Hub, to a file here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError

from vitrail.display import Display, Quiet
from vitrail.errors import CheckpointError, ConfigError, command
from vitrail.files import refusal_told
from vitrail.models.registry import canonical_name
from vitrail.weights.formats.file_kinds import (
    DOWNLOAD,
    HEAD,
    explain_other_kind,
    is_safetensors,
    is_torch,
)
from vitrail.weights.formats.weight_file import FOLDER_FILES
from vitrail.weights.opened import Opened
from vitrail.weights.published.cache import (
    FULL,
    Fetched,
    alone,
    check_unchanged,
    examine,
    find_here,
    is_damaged_blob,
    is_structured,
    part_of,
    place_of,
    read_record,
    write_record,
)
from vitrail.weights.published.catalogue import HUB, WORD, Published, find_row, suggest_row
from vitrail.weights.published.download import (
    NotDownloaded,
    discard,
    download,
    has_secrets,
    is_address,
)
from vitrail.weights.published.hub_files import fetch_file, fetch_folder, find_in_cache
from vitrail.weights.request import LoadRequest

MIRROR = "VITRAIL_WEIGHTS_MIRROR"
"""Variable with the address of a folder that holds the files of the catalogue, for networks that
lead nowhere else."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables of the Hugging Face libraries that forbid any download."""
ORIGIN = "pretrained"
"""Entry of a weight file's provenance that says which published weights it was made of."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A weight file on this machine, and what is known of it by the word that it was asked for by."""

    path: Path
    row: Published | None = None
    """Its row of the catalogue; None for files of one's own, and of others on the Hub."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Name, address, SHA-256 and revision, for the provenance of what is made of it."""
    notes: tuple[str, ...] = ()
    """Messages for the user."""

    def fill(self, request: LoadRequest, word: str) -> LoadRequest:
        """Return a request with what the catalogue knows of the file, where it is left open.

        Raises:
            CheckpointError: The file is of another model than is asked for.
        """
        if self.row is None:
            return request
        if request.model is not None and canonical_name(request.model) != self.row.model:
            raise CheckpointError(
                f"{word}: is a {self.row.model}, not a {request.model}; for that, write "
                f"{WORD}:{request.model}, or {WORD} alone"
            )
        return replace(request, model=self.row.model, dialect=request.dialect or self.row.dialect)

    def describe(self, opened: Opened) -> Opened:
        """Return opened weights with where they come from, and with the preprocessing that the catalogue has."""
        if not self.origin and not self.notes:
            return opened
        record = opened.record
        if self.origin:
            record = replace(record, provenance={**record.provenance, ORIGIN: dict(self.origin)})
        if self.row is not None and record.options["in_channels"] == 3:
            record = replace(record, preprocess=replace(record.preprocess, **self.row.preprocess))
        account = replace(
            opened.account, origin=self.origin, notes=(*self.notes, *opened.account.notes)
        )
        return replace(opened, record=record, account=account)


def resolve_weights(
    text: str | Path, *, model: str | None = None, display: Display | None = None
) -> Path:
    """Return the file, or the folder of the Hub, that a word stands for, fetched if it is not here yet.

    Args:
        text: A path, hf-hub:OWNER/NAME, pretrained, pretrained:ORIGIN, or a name of `vitrail
            weights`.
        model: The model that weights are wanted for, where `pretrained` leaves that open.
        display: Where progress is shown.

    Raises:
        CheckpointError: There are none such, or they cannot be had; the message says how to get
            them.
    """
    return locate_weights(text, model=model, display=display).path


def locate_weights(
    text: str | Path,
    *,
    model: str | None = None,
    display: Display | None = None,
    is_renewed: bool = False,
) -> Located:
    """Return where the weights that a word stands for are, fetched if need be, and what is known of them.

    A weight file or folder that has such a name is taken before anything published, and that is
    said.

    Args:
        text: As `resolve_weights` takes it.
        model: The model that weights are wanted for, where `pretrained` leaves that open.
        display: Where progress is shown.
        is_renewed: Whether all of a file that is here is compared with the hash that was recorded
            of it, and one that is damaged is fetched again.

    Raises:
        CheckpointError: There are none such, or they cannot be had; the message says how to get
            them.
    """
    display = display or Quiet()
    word = os.fspath(text)
    if word.startswith(HUB):
        return _locate_on_hub(word, display, is_renewed)
    path = Path(text)
    is_there = os.path.lexists(path)
    if is_there and not _is_folder_without_weights(path):
        return Located(path=path, notes=_note_same_name(word))
    row = find_row(word, model)
    if row is None:
        if path.name == word and not is_there and (near := suggest_row(word)):
            raise CheckpointError(
                f"{word}: is no file, and no published weights are called so{near}"
            )
        return Located(path=path)
    found = find_here(row)
    if found is None or (is_renewed and not _is_kept(row, found, display)):
        found = fetch(row, display, is_anew=found is not None)
    return Located(path=found, row=row, origin=_origin_of(row, check_unchanged(row, found)))


def _is_kept(row: Published, path: Path, display: Display) -> bool:
    """Say whether a file of the cache is what was fetched; else say to the user that it is fetched again.

    Raises:
        CheckpointError: It is damaged, and cannot be fetched now.
    """
    try:
        check_unchanged(row, path, is_read=True)
    except CheckpointError as error:
        if row.is_by_hand or is_offline():
            raise
        reason = str(error).removeprefix(f"{row.name}: ").partition(";")[0]
        display.warn(f"{row.name}: {reason}; it is fetched again")
        return False
    return True


def find_origin(text: str | Path, model: str | None = None) -> dict[str, Any]:
    """Return the provenance of the weights that a word stands for, from what is recorded here; asks no network.

    It is empty for files of one's own.
    """
    word = os.fspath(text)
    if word.startswith(HUB):
        repository, _, revision = word.removeprefix(HUB).partition("@")
        cached = find_in_cache(repository, revision or None)
        return (
            {"address": word}
            if cached is None
            else {"address": word, "revision": cached.parent.name}
        )
    row = None if os.path.lexists(word) else find_row(word, model)
    return {} if row is None else _origin_of(row, read_record(row))


def fetch(row: Published, display: Display, *, is_anew: bool = False) -> Path:
    """Return the file of published weights, downloaded if it is not here.

    Args:
        row: The weights.
        display: Where progress is shown.
        is_anew: Whether it is downloaded all the same, and takes the place of one that is damaged.

    Raises:
        CheckpointError: It cannot be had; the message says where to get it and where to put it.
        ConfigError: The mirror is no address.
    """
    here = find_here(row)
    if here is not None and not is_anew:
        return here
    place = place_of(row)
    by_hand = f"`{command('weights', 'add', 'FILE')}` takes it from anywhere, or put it at {place}"
    if row.is_by_hand:
        raise CheckpointError(
            f"{row.name}: has to be fetched with a browser, from {row.page}; {by_hand}"
        )
    address = _address_of(row)
    where = f"{row.name}: {row.file} is not here"
    if is_offline():
        raise CheckpointError(
            f"{where}, and HF_HUB_OFFLINE forbids to fetch it; get it from {row.page} where there "
            f"is a network: {by_hand}"
        )
    with alone(row, display):
        found = find_here(row)
        if found is not None and not is_anew:  # another process has fetched it meanwhile
            return found
        try:
            if address.startswith(HUB):
                if found is not None:
                    _remove_file(found)
                return _fetch_from_hub(row, display)
            return _fetch_from_address(row, address, display)
        except NotDownloaded as error:
            elsewhere = "elsewhere" if address == row.page else f"from {row.page} elsewhere"
            raise CheckpointError(
                f"{where}, and cannot be fetched from {address} ({error}); get it {elsewhere}: "
                f"{by_hand}"
            ) from error


def is_offline() -> bool:
    """Say whether the environment forbids any download."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def _remove_file(path: Path) -> None:
    """Remove a file, and in the Hub's cache the blob that its name leads to.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    with refusal_told(path, None, FULL):
        if path.parent.parent.name == "snapshots":
            Path(os.path.realpath(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _fetch_from_hub(row: Published, display: Display) -> Path:
    assert row.repository is not None
    known = read_record(row)
    revision = None if known is None else known.revision
    try:
        path = fetch_file(
            row.repository, FOLDER_FILES[0], revision, label=row.name, display=display
        )
    except EntryNotFoundError as error:
        raise NotDownloaded(f"it has no {FOLDER_FILES[0]}") from error
    try:
        fetched = examine(
            row, path, source=row.address, revision=path.parent.name, called=row.address
        )
    except CheckpointError:
        _remove_file(path)
        raise
    write_record(row, fetched)
    return path


def _fetch_from_address(row: Published, address: str, display: Display) -> Path:
    part, place = part_of(row), place_of(row)
    download(address, part, label=row.name, display=display, is_whole=is_structured)
    advice = f"get it elsewhere: {command('weights', 'add', 'FILE')}"
    if address != row.address:
        advice = f"look what is there, as {MIRROR} names it, or unset that"
    try:
        with part.open("rb") as file:
            head = file.read(HEAD)
        is_weights = is_safetensors(head) or is_torch(head)
        if not is_weights and (wrong := explain_other_kind(place, head)):
            wrong = wrong.removesuffix(f": {DOWNLOAD}")
            raise CheckpointError(f"{row.name}: what {address} sends {wrong}; {advice}")
        fetched = examine(row, part, source=address, called=address, advice=advice)
    except CheckpointError:
        discard(part)
        raise
    with refusal_told(place, None, FULL):
        part.replace(place)
    discard(part)
    write_record(row, fetched)
    return place


def _address_of(row: Published) -> str:
    """Return where a file is fetched from: its own address, or the mirror's.

    Raises:
        ConfigError: The mirror is no address, or says more than where the files are.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return row.address
    if has_secrets(mirror):  # which are not shown
        raise ConfigError(
            f"{MIRROR} has a user, a password or a query in it, which would be shown and recorded; "
            "give a folder's address without them, such as https://host/weights"
        )
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(
            f"{MIRROR} is {mirror!r}; it must begin with http:// or https://, and files of a "
            f"folder are taken by `{command('weights', 'add', 'FILE')}`"
        )
    if not is_address(mirror):
        raise ConfigError(
            f"{MIRROR} is {mirror!r}, which is no address; give one such as https://host/weights, "
            "with %20 for a blank"
        )
    return f"{mirror.rstrip('/')}/{row.file}"


def _locate_on_hub(word: str, display: Display, is_renewed: bool) -> Located:
    name = word.removeprefix(HUB)
    try:
        folder = fetch_folder(name, display)
        damaged = [
            folder / file for file in FOLDER_FILES if is_renewed and (folder / file).exists()
        ]
        for path in filter(is_damaged_blob, damaged):
            display.warn(f"{word}: {path} is damaged; it is fetched again")
            _remove_file(path)
            folder = fetch_folder(name, display)
    except NotDownloaded as error:
        raise CheckpointError(
            f"{word}: cannot be downloaded ({error}); give a file, or a folder that was downloaded "
            "elsewhere"
        ) from error
    return Located(path=folder, origin={"address": word, "revision": folder.name})


def _is_folder_without_weights(path: Path) -> bool:
    return path.is_dir() and not any((path / name).exists() for name in FOLDER_FILES)


def _note_same_name(word: str) -> tuple[str, ...]:
    """Return the note that a file has the name of published weights."""
    try:
        row = find_row(word) if Path(word).name == word else None
    except CheckpointError:  # a word for none that are published
        row = None
    if row is None:
        return ()
    return (
        f"{word}: the file or folder of that name is taken; {WORD}:{row.name} are the published "
        "weights",
    )


def _origin_of(row: Published, fetched: Fetched | None) -> dict[str, Any]:
    """Return what is known of where published weights come from."""
    origin: dict[str, Any] = {"name": row.name, "address": row.address}
    if fetched is None:
        return origin
    if fetched.source and fetched.source != row.address:
        origin["source"] = fetched.source
    if fetched.revision is not None:
        origin["revision"] = fetched.revision
    return {**origin, "sha256": fetched.sha256}
