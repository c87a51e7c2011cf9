"""A server whose terminal goes away: it ends as SIGTERM ends it, unless nohup says otherwise."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import pytest
from PIL import Image

from support.forked import wait_until
from support.serving import Server, encoded, run_server, start
from support.tiny_model import save_tiny

PHOTO = encoded(Image.new("RGB", (60, 40), "red"))
ASK = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO
PARTIAL, REST = ASK[:-5], ASK[-5:]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture
def server(checkpoint: Path) -> Iterator[Server]:
    running = start(checkpoint)
    yield running
    running.process.kill()


def refuses(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place).close()
    except ConnectionRefusedError:
        return True
    return False


def finish(begun: socket.socket) -> None:
    """Send the rest of a request, of which the answer is the last."""
    place = begun.getpeername()
    wait_until(lambda: refuses(place))
    with closing(begun):
        begun.sendall(REST)
        answer = HTTPResponse(begun)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        assert b'"topk"' in answer.read()
        assert begun.recv(1) == b""


def test_it_finishes_what_is_begun_and_ends(server: Server) -> None:
    begun = server.connect(PARTIAL)
    wait_until(lambda: server.measure("vitrail_held_images") == 1, server.process)
    os.killpg(server.process.pid, signal.SIGHUP)  # the decoders are told too
    finish(begun)
    done = server.process.wait()
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["by"] for line in lines if line["event"] == "the server ends"] == ["SIGHUP"]
    assert {line["level"] for line in lines} == {"info"}


UNDER_NOHUP = """
import signal, sys
from vitrail.cli.app import main

signal.signal(signal.SIGHUP, signal.SIG_IGN)
main(["serve", sys.argv[1], "--port", "0", "--device", "cpu"])
"""


def test_under_nohup_it_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "nohup.py").write_text(UNDER_NOHUP)
    server = run_server(tmp_path / "nohup.py", checkpoint)
    os.killpg(server.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert server.ask("POST", "/predict", PHOTO)[0] == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait().returncode == 0


@pytest.mark.thorough
def test_with_a_real_terminal_too(checkpoint: Path) -> None:
    ours, terminal = os.openpty()

    def hold_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests that run under nohup hand down as ignored

    process = subprocess.Popen(
        [sys.executable, "-m", "vitrail", "serve", str(checkpoint), "--port", "0", "--device", "cpu"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=hold_terminal,
    )
    os.close(terminal)
    shown = b""
    while (found := re.search(rb"http://127\.0\.0\.1:(\d+): .*\n", shown)) is None:
        shown += os.read(ours, 65536)
    begun = socket.create_connection(("127.0.0.1", int(found[1])), timeout=60)
    begun.sendall(PARTIAL)
    time.sleep(0.5)
    os.close(ours)
    finish(begun)
    assert process.wait(60) == 0
