"""A real server process and what its clients send."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from support.forked import Python, wait_until

Answer = tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class Server:
    """A running server."""

    process: Python
    url: str

    @property
    def place(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Return status, body and headers."""
        with closing(HTTPConnection(*self.place, timeout=60)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named, encode_chunked=isinstance(body, Iterator))
            answer = connection.getresponse()
            text = answer.read()
            found = json.loads(text) if "json" in answer.headers["content-type"] else {"text": text.decode()}
            return answer.status, found, {name.lower(): value for name, value in answer.getheaders()}

    def send(self, *files: bytes, **headers: str) -> Answer:
        """Ask for the classes of some files, as a form."""
        return self.ask("POST", "/predict", form(*files), content_type=FORM, **headers)

    def connect(self, text: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.place, timeout=60)
        connection.sendall(text)
        return connection

    def exchange(self, text: bytes, *, is_done: bool = False) -> bytes:
        """Send this, and then perhaps say that it was all; return what comes until the server closes."""
        with self.connect(text) as connection:
            if is_done:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)

    def measure(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[1]["text"].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def until_empty(self) -> None:
        wait_until(lambda: self.measure("vitrail_held_images") == 0, self.process)


FORM = "multipart/form-data; boundary=-b-"


def form(*files: bytes, name: str = "secret name.jpg") -> bytes:
    head = f'---b-\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + b"---b---\r\n"


def start(checkpoint: Path, *flags: object, **environment: str) -> Server:
    """Return `vitrail serve CHECKPOINT FLAGS` as soon as it answers."""
    return run_server("-m", "vitrail", "serve", checkpoint, "--port", 0, "--device", "cpu", *flags, **environment)


def run_server(*words: object, **environment: str) -> Server:
    """Return a Python program whose first line is the address that it answers at."""
    process = Python(*words, env={**os.environ, **environment})
    wait_until(lambda: "\n" in process.out, process)
    return Server(process, process.out.split()[0].rstrip(":"))


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
