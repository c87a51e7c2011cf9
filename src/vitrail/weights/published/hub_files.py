"""Files of the Hugging Face Hub, fetched into its own cache by its own library."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, by the version of the library
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import tqdm

from vitrail.display import Display
from vitrail.weights.formats.weight_file import FOLDER_FILES
from vitrail.weights.published.download import NotDownloaded, Received, hide_secrets

REFUSED = (HTTPError, HFValidationError, FileMetadataError, OSError)
"""Errors of the Hub's library: what the server refuses, a name that is none, no network, a disk
that is full."""


def find_in_cache(repository: str, revision: str | None = None) -> Path | None:
    """Return the weights of a repository where the Hub's cache has them; asks no network.

    Args:
        repository: OWNER/NAME.
        revision: Commit; None is the newest that was fetched.
    """
    found = huggingface_hub.try_to_load_from_cache(repository, FOLDER_FILES[0], revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch_file(
    repository: str, file: str, revision: str | None, *, label: str, display: Display
) -> Path:
    """Fetch a file of a repository, unless the Hub's cache has it, and return where it is.

    A fetch that is cut is gone on with by this process; the next one begins anew.

    Args:
        repository: OWNER/NAME.
        file: Name of the file there.
        revision: Commit, branch or tag; None is the main branch.
        label: What is fetched, for the live line.
        display: Where progress is shown.

    Raises:
        EntryNotFoundError: The repository has no such file.
        NotDownloaded: It cannot be had.
    """
    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if not isinstance(cached, str):  # what is here is taken without a network too
            _require_host()
        bar: Any = _make_bar(label, display)
        with _log_shown(label, display):
            path = huggingface_hub.hf_hub_download(
                repository, file, revision=revision, tqdm_class=bar
            )
    except (
        LocalEntryNotFoundError
    ) as error:  # which is an EntryNotFoundError too, and means no network
        raise NotDownloaded(_explain(error)) from error
    except EntryNotFoundError:
        raise
    except REFUSED as error:
        raise NotDownloaded(_explain(error)) from error
    return Path(path)


def fetch_folder(name: str, display: Display) -> Path:
    """Fetch the weights and the config.json of a repository, and return the folder that they are in.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION.
        display: Where progress is shown.

    Raises:
        NotDownloaded: It cannot be had, or has no weights of a kind that is read here.
    """
    repository, _, revision = name.partition("@")
    options = {"label": name, "display": display}
    try:
        config = fetch_file(repository, "config.json", revision or None, **options)
    except EntryNotFoundError as error:
        raise NotDownloaded("it has no config.json, by which models are known there") from error
    for file in FOLDER_FILES:
        try:  # of the same commit, even where the branch has moved on meanwhile
            fetch_file(repository, file, config.parent.name, **options)
        except EntryNotFoundError:
            continue
        return config.parent
    raise NotDownloaded(f"it has neither {' nor '.join(FOLDER_FILES)}")


def _require_host() -> None:
    """Refuse at once where no network leads to the Hub, whose library would try for half a minute.

    Raises:
        NotDownloaded: Its name is not known.
    """
    host = urlsplit(constants.ENDPOINT).hostname
    # a proxy knows names that this machine does not
    if constants.HF_HUB_OFFLINE or getproxies() or host is None:
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise NotDownloaded(f"{host}: {error.strerror}") from error


@contextmanager
def _log_shown(label: str, display: Display) -> Iterator[None]:
    """Show on the display what the Hub's library logs, such as that it tries again."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            display.note(f"{label}: {hide_secrets(' '.join(record.getMessage().split()))}")

    logger = logging.getLogger("huggingface_hub")
    before = logger.handlers
    logger.handlers = [Shown()]
    try:
        yield
    finally:
        logger.handlers = before


def _make_bar(label: str, display: Display) -> type[tqdm]:
    """Return a class of progress bars, as the Hub's library takes one, that shows what comes on the display."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options["disable"] = True  # nothing is drawn but by the display
            super().__init__(*args, **options)
            self._shown = Received(
                display, label, options.get("total"), options.get("initial") or 0
            )

        def update(self, n: float | None = 1) -> None:
            self._shown.add(int(n or 0))

        def close(self) -> None:
            self._shown.close()

    return Bar


def _explain(error: Exception) -> str:
    """Say in one line what the Hub's library says, which tells the cause of its own errors apart."""
    cause = (
        error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    )
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        return (
            f"the Hub answers {cause.response.status_code} {cause.response.reason_phrase}".strip()
        )
    if isinstance(cause, HFValidationError):
        return "what follows hf-hub: must be OWNER/NAME, or OWNER/NAME@REVISION"
    return hide_secrets(" ".join(str(cause).split()))[:200] or type(cause).__name__
