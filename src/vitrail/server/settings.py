"""Settings of the server: address, batching, API key, allowed hosts and origins, and limits of requests. No torch."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import ConfigError, name_option, write_option
from vitrail.files import read_regular

MAX_KEY_FILE = 2**16
"""Bytes of the file with the key, which has some hundred."""
KEY_VARIABLE = "VITRAIL_API_KEY"
"""Environment variable that holds the API key."""
MEBIBYTE = 2**20
ANY_NAME = "*"
"""The host name that stands for all."""
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
"""A host name."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{0,5})?")
"""The header Host: a name or an address, and the port."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests; beyond one of them, a request is refused with the reason."""

    max_bytes: int = 20 * MEBIBYTE
    """Bytes of one file."""
    max_files: int = 16
    """Files of one request."""
    max_pixels: int = 50_000_000
    """Pixels of one image; decoded, each takes three bytes for a moment."""
    decode_s: float = 5.0
    """Seconds of processor time to decode one image, as estimated from its header and as
    measured."""
    queue: int = 256
    """Images that are being received, wait or are computed, of all requests together."""
    timeout_s: float = 30.0
    """Seconds from the first byte of a request to its answer."""

    @property
    def request_bytes(self) -> int:
        """Bytes of one request, with room for what stands between its files."""
        return self.max_bytes * self.max_files + MEBIBYTE

    @property
    def held_bytes(self) -> int:
        """Bytes of all requests that are being answered, so that memory is bounded however many there are."""
        return max(self.request_bytes, 512 * MEBIBYTE)

    @property
    def connections(self) -> int:
        """Connections that are open at a time."""
        return max(2048, 2 * self.queue)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """All settings of the server but the model."""

    host: str = "127.0.0.1"
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    max_batch: int = 16
    """Images that are computed together."""
    max_wait_ms: float = 5.0
    """Milliseconds that an image waits for others to be computed with."""
    topk: int | None = None
    """Classes of each answer; None is 5, or all that reach their thresholds."""
    api_key: str | None = None
    """Key that requests must bring; None lets anyone ask."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask, such as https://example.org."""
    host_names: tuple[str, ...] = ()
    """Names that requests may call the server by, beside its addresses, localhost and `host`; * is
    any."""
    max_explanations: int = 4
    """Explanations that are held at a time, one of which is computed; 0 explains nothing."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        problems = [
            *self._find_numbers_too_small(),
            *self._find_bad_origins(),
            *self._find_bad_host_names(),
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    def _find_numbers_too_small(self) -> list[str]:
        limits = self.limits
        topk = 1 if self.topk is None else self.topk
        at_least: dict[str, tuple[float, int]] = {
            "max_batch": (self.max_batch, 1),
            "max_wait_ms": (self.max_wait_ms, 0),
            "topk": (topk, 1),
            "max_explanations": (self.max_explanations, 0),
            "max_bytes": (limits.max_bytes, 1),
            "max_files": (limits.max_files, 1),
            "max_pixels": (limits.max_pixels, 1),
            "queue": (limits.queue, 1),
        }
        seconds = {"timeout_s": limits.timeout_s, "max_decode_s": limits.decode_s}

        # written so that NaN is refused too
        problems = []
        for name, (value, least) in at_least.items():
            if not least <= value < math.inf:
                problems.append(f"{name_option(name)} is {value:g}; it must be at least {least}")
        for name, value in seconds.items():
            if not 0 < value < math.inf:
                problems.append(f"{name_option(name)} is {value:g}; it must be above 0")
        if not 0 <= self.port <= 65535:
            problems.append(
                f"{name_option('port')} is {self.port}; it must be 1 to 65535, or 0 for a free one"
            )
        return problems

    def _find_bad_origins(self) -> list[str]:
        problems = []
        for origin in self.cors:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                where = write_option("cors", origin)
                problems.append(
                    f"{where}: is no origin; write it as https://example.org or http://host:3000"
                )
        return problems

    def _find_bad_host_names(self) -> list[str]:
        problems = []
        for name in self.host_names:
            if name != ANY_NAME and NAME.fullmatch(name) is None:
                where = write_option("host_name", name)
                problems.append(
                    f"{where}: is no host name; write it as example.org, without port, or * for any"
                )
        return problems

    def accepts_host(self, header: str) -> bool:
        """Say whether a request may come with this header `Host`, of which the port does not matter.

        An address may always: a page that was loaded by a name that now leads here brings that
        name.
        """
        if ANY_NAME in self.host_names:
            return True
        match = HOST.fullmatch(header)
        if match is None:
            return False
        name = match[1].strip("[]").removesuffix(".").lower()
        own_names = {"localhost", self.host.lower(), *map(str.lower, self.host_names)}
        return name in own_names or _is_address(name)

    @property
    def is_open(self) -> bool:
        """Whether others than this machine may ask, without a key."""
        if self.api_key is not None:
            return False
        if _is_address(self.host):
            return not ipaddress.ip_address(self.host).is_loopback
        return self.host != "localhost"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_key(file: Path | None) -> str | None:
    """Return the key that requests must bring, from a file or from the environment; None where neither has one.

    Raises:
        ConfigError: The file cannot be read, or what it holds cannot be sent in a header.
    """
    if file is None:
        where = KEY_VARIABLE
        key = os.environ.get(KEY_VARIABLE)
    else:
        where = write_option("api_key_file", file)
        key = _read_key_file(file, where)
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{where}: holds no key; it must be one word of ASCII, such as `openssl rand -hex 32` "
            "prints"
        )
    return key


def _read_key_file(file: Path, where: str) -> str:
    try:
        return read_regular(file, MAX_KEY_FILE).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        return ""  # no key either
