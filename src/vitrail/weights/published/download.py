"""Download a file over HTTP: resumed where it was cut, tried again, bounded in size and in time.

torch.hub's downloader begins anew after each cut, and that of huggingface_hub goes on without
asking whether the file is still the same; so this one is written with Python's own HTTP.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, InvalidURL
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from vitrail.display import Display
from vitrail.errors import VitrailError
from vitrail.files import refusal_told, write_whole

CHUNK = 2**16
MEGABYTE = 10**6
SHOWN_EVERY_S = 0.5
"""Seconds after which the speed is shown anew, of a connection that needs longer for a megabyte."""
RANGE_NOT_THERE = 416
"""Answer of a server where the file ends before what is asked for."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one a little later."""
FULL = "free space, or point TORCH_HOME to another disk"


class NotDownloaded(VitrailError):
    """Why a file could not be downloaded, as a clause."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how often a download is tried, and how large it may be."""

    timeout_s: float = 30.0
    """Seconds of silence after which a connection counts as lost."""
    tries: int = 5
    """Tries in a row that bring nothing before it is given up."""
    wait_s: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""
    most: int = 4 * 2**30
    """Bytes of the file; the largest known has half a billion."""


class Received:
    """The bytes of a download as they are shown: a live line that counts megabytes.

    Args:
        display: Where they are shown.
        label: What is downloaded.
        total: Bytes of the whole; None where they are unknown.
        done: Bytes that are there already.
    """

    def __init__(self, display: Display, label: str, total: int | None, done: int = 0) -> None:
        self._display = display
        self._bytes = done
        self._started, self._before = time.monotonic(), done
        self._shown = self._started
        megabytes = None if total is None else total // MEGABYTE
        display.begin(f"fetch {label}, MB", megabytes, done // MEGABYTE)

    def add(self, count: int) -> None:
        """Count bytes that came; fewer than none where they are to come again."""
        shown = self._bytes // MEGABYTE
        self._bytes += count
        now = time.monotonic()
        speed = (self._bytes - self._before) / max(now - self._started, 1e-3) / MEGABYTE
        steps = self._bytes // MEGABYTE - shown
        if steps or now - self._shown >= SHOWN_EVERY_S:
            self._shown = now
            digits = 1 if speed >= 1 else 3
            self._display.advance(steps, speed=f"{max(speed, 0):.{digits}f} MB/s")

    def close(self) -> None:
        """Finish the live line."""
        self._display.end()


def download(
    address: str,
    part: Path,
    *,
    label: str,
    display: Display,
    limits: Limits | None = None,
    is_whole: Callable[[Path], bool] = lambda part: True,
) -> None:
    """Download a file, or what is missing of it.

    A part that an earlier try left is gone on with, if the server says that the file is still the
    same.

    Args:
        address: Of the file, http or https.
        part: File to write to; `discard` removes it, and what is kept beside it to go on.
        label: What is downloaded, for the live line.
        display: Where progress is shown.
        limits: Times, tries and size.
        is_whole: Says of what came whether it may be all of the file, where the server does not
            say how long that is, so that a cut looks like its end.

    Raises:
        NotDownloaded: The server refuses, is silent, or sends something else than the file.
        CheckpointError: The disk is full or the folder cannot be written; what came stays.
    """
    limits = limits or Limits()
    failures = 0
    while True:
        before = _size(part)
        try:
            return _receive(address, part, label, display, limits, is_whole)
        except HTTPError as error:
            error.close()
            reason = _explain_answer(error)
            if error.code == RANGE_NOT_THERE:
                if before and error.headers.get("Content-Range") == f"bytes */{before}":
                    return  # all of it was here
                discard(part)
            elif error.code not in PASSING:
                raise NotDownloaded(reason) from error
        except (_Lost, HTTPException, OSError) as error:
            reason = _explain(error, limits)
            if _is_final(error):
                raise NotDownloaded(reason) from error
        failures = 1 if _size(part) > before else failures + 1
        if failures >= limits.tries:
            raise NotDownloaded(f"{reason}, {limits.tries} times in a row")
        display.note(f"{label}: {reason}; trying again")
        time.sleep(limits.wait_s * 2 ** (failures - 1))


def discard(part: Path) -> None:
    """Remove a part, and what is kept beside it to go on."""
    part.unlink(missing_ok=True)
    _validator_of(part).unlink(missing_ok=True)


class _Lost(Exception):
    """A connection that ended before the file did."""


def _open(request: Request, timeout_s: float) -> Any:
    """Ask for an address, by the proxies of this moment; `urlopen` keeps those of its first call."""
    return build_opener().open(request, timeout=timeout_s)


def _receive(
    address: str,
    part: Path,
    label: str,
    display: Display,
    limits: Limits,
    is_whole: Callable[[Path], bool],
) -> None:
    """Ask once for what is missing of a file, and append what comes to the part."""
    headers = {"User-Agent": f"vitrail/{version('vitrail')}"}
    done, validator = _size(part), _read_validator(part, address)
    if done and validator:
        headers |= {"Range": f"bytes={done}-", "If-Range": validator}
    with closing(_open(Request(address, headers=headers), limits.timeout_s)) as response:
        total = _read_total(response.headers)
        if response.status != 206 or _read_begin(response.headers) != done:
            if response.status == 206:
                discard(part)
                raise _Lost("the server sent another part of it than was asked for")
            done = 0
        if total is not None and total > limits.most:
            raise NotDownloaded(
                f"it is said to have {total:,} bytes, and {limits.most:,} are the most"
            )
        with refusal_told(part, None, FULL):
            part.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would be written again, and refused again, when the file is
            # closed
            file = part.open("ab" if done else "wb", buffering=0)
        with file:
            if not done:
                _write_validator(part, address, response.headers)
            shown = Received(display, label, total, done)
            try:
                # what has come is written at once, so that a connection that breaks takes none of it
                done = _append(response.read1, file, part, done, shown, limits.most)
            finally:
                shown.close()
            with refusal_told(part, None, FULL):
                os.fsync(file.fileno())
        if total is not None and done < total:
            raise _Lost(f"the connection was cut after {done:,} of {total:,} bytes")
        if total is None and not is_whole(part):
            raise _Lost(
                f"it ended after {done:,} bytes, which are not the whole file, and the server does "
                "not say its length"
            )


def _append(
    read: Callable[[int], bytes], file: FileIO, part: Path, done: int, shown: Received, most: int
) -> int:
    """Append all that comes to a file, and return the bytes that it has then."""
    while chunk := read(CHUNK):
        done += len(chunk)
        if done > most:
            discard(part)
            raise NotDownloaded(f"it has more than {most:,} bytes, which are the most")
        with refusal_told(part, None, FULL):
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        shown.add(len(chunk))
    return done


def _explain(error: Exception, limits: Limits) -> str:
    """Say as a clause why nothing came."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {limits.timeout_s:g} s"
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return hide_secrets(" ".join(text.split()))[:200] or type(cause).__name__


def _explain_answer(error: HTTPError) -> str:
    """Say as a clause what a server answered instead of the file."""
    if 300 <= error.code < 400:  # urllib puts a paragraph into the reason
        return f"the server answers {error.code}, and leads in a circle or to no web address"
    return f"the server answers {error.code} {' '.join(str(error.reason).split())[:100]}".strip()


def has_secrets(address: str) -> bool:
    """Say whether an address may have more in it than a place: credentials, or a query as signed addresses have it."""
    return any(mark in address for mark in "@?#")


def is_address(text: str) -> bool:
    """Say whether a text can be asked for: http or https, with a host, and none of its characters to be quoted."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        # the port is looked at when it is read
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def hide_secrets(text: str) -> str:
    """Return a text without the credentials and the queries of addresses in it, as signed addresses have them."""
    return re.sub(r"(https?://)(?:[^\s/?#]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?", r"\1\2", text)


def _is_final(error: Exception) -> bool:
    """Say whether another try would end alike: no such machine or network, a certificate not trusted, no address."""
    cause = error.reason if isinstance(error, URLError) else error
    return isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError | InvalidURL)


def _read_total(headers: HTTPMessage) -> int | None:
    """Return the bytes of the whole file, where the server says them."""
    ranged = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    if ranged:
        return int(ranged[1])
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _read_begin(headers: HTTPMessage) -> int | None:
    """Return where in the file the answer begins, of a server that sends a part of it."""
    ranged = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(ranged[1]) if ranged else None


def _validator_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_validator(part: Path, address: str) -> str:
    """Return what tells whether a part is of the file that the server still has; empty where nothing does."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept: Any = json.loads(_validator_of(part).read_text(encoding="utf-8"))
        if kept["address"] == address:
            return str(kept["validator"])
    return ""


def _write_validator(part: Path, address: str, headers: HTTPMessage) -> None:
    etag = headers.get("ETag", "")
    validator = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    write_whole(
        _validator_of(part), json.dumps({"address": address, "validator": validator}).encode(), FULL
    )


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0
