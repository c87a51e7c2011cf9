"""A real HTTP server on loopback that serves weight files, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Served:
    """A file, and what happens to the requests for it, one after the other."""

    data: bytes
    etag: str | None = '"first"'
    ranges: bool = True
    """Whether parts of it can be had."""
    answers: list[int | str] = field(default_factory=list)
    """For each request: a status, `cut N` after N bytes, `reset N` likewise, but without a farewell, `wait S` seconds,
    or an address that it leads to."""
    says_length: bool = True
    claimed: int | None = None
    """Bytes that it is said to have; None is the truth."""
    kind: str = "application/octet-stream"


@dataclass
class Server:
    """A server that runs, and what it was asked for."""

    url: str
    files: dict[str, Served]
    """Files by their path."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""

    def asked(self, path: str) -> list[str]:
        """Return the range of each request for a file; empty for one that wanted all of it."""
        return [ranged for method, name, ranged in self.requests if method == "GET" and name == path]


@contextmanager
def serving(files: dict[str, Served] | None = None) -> Iterator[Server]:
    """Serve files until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    told = Server(f"http://127.0.0.1:{server.server_port}", files or {})
    server.told = told  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of_hub(repository: str, **files: bytes) -> dict[str, Served]:
    """Return the files of a model's repository as the Hub serves them, at the paths of their branch and commit.

    Underscores before the last one of a keyword are those of the name, so that model_safetensors is model.safetensors.
    """
    served = {}
    for keyword, data in files.items():
        name = ".".join(keyword.rsplit("_", 1))
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        for revision in ("main", COMMIT):
            served[f"/{repository}/resolve/{revision}/{name}"] = Served(data, etag=etag)
    return served


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def finish(self) -> None:
        with suppress(OSError, ValueError):  # of a connection that was reset
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        told: Server = self.server.told  # pyright: ignore[reportAttributeAccessIssue]
        path = unquote(urlparse(self.path).path)
        told.requests.append((self.command, path, self.headers.get("Range", "")))
        served = told.files.get(path)
        if served is None:
            self._refuse(404)
            return
        answer = served.answers.pop(0) if served.answers and self.command == "GET" else ""
        if isinstance(answer, int):
            self._refuse(answer)
        elif answer.startswith(("http", "/")):
            self.send_response(302)
            self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(served, answer)

    def _send(self, served: Served, answer: str) -> None:
        verb, _, amount = answer.partition(" ")
        if verb == "wait":
            time.sleep(float(amount))
        begin = self._begin(served)
        if begin is not None and begin >= len(served.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if begin is None else 206)
        body = served.data[begin or 0 :]
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin}-{len(served.data) - 1}/{len(served.data)}")
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", served.kind)
        if served.says_length:
            self.send_header("Content-Length", str(served.claimed or len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # of a client that has had enough
                self.wfile.write(body[: int(amount)] if verb in ("cut", "reset") else body)
        if verb == "reset":
            time.sleep(0.3)  # until all of it has come
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if verb in ("cut", "reset") or not served.says_length or served.claimed:
            self.close_connection = True

    def _begin(self, served: Served) -> int | None:
        """Return where the part that is asked for begins; None where all of it is sent."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if found is None or not served.ranges or condition not in (None, served.etag):
            return None
        return int(found[1])

    def _refuse(self, status: int) -> None:
        body = json.dumps({"error": status}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
