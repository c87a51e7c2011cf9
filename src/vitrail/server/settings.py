"""What `vitrail serve` is told: where it listens, whom it answers, and what it refuses. No torch."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import ConfigError

KEY_VARIABLE = "VITRAIL_API_KEY"
MEBIBYTE = 2**20
ANY_NAME = "*"
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{0,5})?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for; beyond it, it is refused with the reason."""

    max_bytes: int = 20 * MEBIBYTE
    """Of one file."""
    max_files: int = 16
    """Of one request."""
    max_pixels: int = 50_000_000
    """Of one image; decoded, each takes three bytes for a moment."""
    decode_s: float = 5.0
    """Seconds of processor time to decode one image, as estimated from its header and as measured."""
    queue: int = 256
    """Images that are being received, wait or are computed, of all requests together."""
    timeout_s: float = 30.0
    """From the first byte of a request to its answer."""

    @property
    def request_bytes(self) -> int:
        """Of one request, with room for what stands between its files."""
        return self.max_bytes * self.max_files + MEBIBYTE

    @property
    def held_bytes(self) -> int:
        """Of all requests that are being answered, so that memory is bounded however many there are."""
        return max(self.request_bytes, 512 * MEBIBYTE)

    @property
    def connections(self) -> int:
        """Most that are open at a time."""
        return max(2048, 2 * self.queue)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Everything but the model."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    max_batch: int = 16
    """Images that are computed together."""
    max_wait_ms: float = 5.0
    """How long an image waits for others to be computed with."""
    topk: int | None = None
    """Classes of each answer; None is 5, or all that reach their thresholds."""
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask, such as https://example.org."""
    host_names: tuple[str, ...] = ()
    """Names that requests may call the server by, beside its addresses, localhost and `host`; * is any."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        limits = self.limits
        at_least = {
            "--max-batch": (self.max_batch, 1), "--max-wait-ms": (self.max_wait_ms, 0),
            "--topk": (1 if self.topk is None else self.topk, 1),
            "--max-bytes": (limits.max_bytes, 1), "--max-files": (limits.max_files, 1),
            "--max-pixels": (limits.max_pixels, 1), "--queue": (limits.queue, 1),
        }  # fmt: skip
        problems = [f"{name} is {value:g}; it must be at least {least}" for name, (value, least) in at_least.items()
                    if not least <= value < float("inf")]  # fmt: skip
        for name, value in (("--timeout-s", limits.timeout_s), ("--max-decode-s", limits.decode_s)):
            if not 0 < value < float("inf"):
                problems.append(f"{name} is {value:g}; it must be above 0")
        if not 0 <= self.port <= 65535:
            problems.append(f"--port is {self.port}; it must be 1 to 65535, or 0 for a free one")
        for origin in self.cors:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                problems.append(f"--cors {origin}: is no origin; write it as https://example.org or http://host:3000")
        for name in self.host_names:
            if name != ANY_NAME and NAME.fullmatch(name) is None:
                problems.append(
                    f"--host-name {name}: is no host name; write it as example.org, without port, or * for any"
                )
        if problems:
            raise ConfigError("; ".join(problems))

    def is_called(self, host: str) -> bool:
        """Say whether a request may come with this `Host`, of which the port does not matter.

        An address may always: a page that was loaded by a name that now leads here brings that name.
        """
        if ANY_NAME in self.host_names:
            return True
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").removesuffix(".").lower()
        return name in {"localhost", self.host.lower(), *map(str.lower, self.host_names)} or _is_address(name)

    @property
    def is_open(self) -> bool:
        """Whether others than this machine may ask, without a key."""
        is_local = ipaddress.ip_address(self.host).is_loopback if _is_address(self.host) else self.host == "localhost"
        return not is_local and self.api_key is None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_key(file: Path | None) -> str | None:
    """Return the key that requests must bring: of a file, or of the environment; None is none.

    Raises:
        ConfigError: The file cannot be read, or what it holds cannot be sent in a header.
    """
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        where = f"--api-key-file {file}"
        try:
            key = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError:
            key = ""
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: holds no key; it must be one word of ASCII, such as `openssl rand -hex 32` prints")
    return key
