"""Answers as the Hugging Face Hub does for one data set, owner/pets; prints its own address."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

ROOT = Path(sys.argv[1])
COMMIT = "c0" * 20


class Hub(BaseHTTPRequestHandler):
    """The few addresses that are asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if not re.match(r"(/api)?/datasets/owner/pets\b", path):
            self.refuse("RepoNotFound")
        elif found := re.search(r"/resolve/([^/]+)/(.+)", path):
            self.file(ROOT / found[2]) if found[1] in ("main", COMMIT) else self.refuse("RevisionNotFound")
        elif found := re.search(r"/tree/[^/]+(/.+)?", path):
            self.refuse("EntryNotFound") if found[1] else self.answer([self.entry(file) for file in ROOT.iterdir()])
        elif path.partition("/revision/")[2] in ("", "main", COMMIT):
            files = [{"rfilename": file.name} for file in ROOT.iterdir()]
            self.answer({"id": "owner/pets", "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0, "likes": 0})
        else:
            self.refuse("RevisionNotFound")

    def entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}

    def file(self, file: Path) -> None:
        if not file.is_file():
            self.refuse("EntryNotFound")
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if found := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            begin, end = int(found[1]), min(int(found[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            self.send(206, data[begin:end], headers)
        else:
            self.send(200, data, headers)

    def answer(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()
