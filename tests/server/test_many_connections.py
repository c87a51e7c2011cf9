"""More connections than a server keeps: who holds them without asking loses them, and an honest client is answered."""

import json
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from support.forked import wait_until
from support.serving import Server, encoded, run_server
from support.tiny_model import save_tiny

PHOTO = encoded(Image.new("RGB", (60, 40), "red"))
OTHER = "127.0.0.2"
FEW_FILES = """
import resource, sys
from vitrail.cli.app import main

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
main(["serve", sys.argv[1], "--port", "0", "--device", "cpu", "--timeout-s", "60"])
"""
"""The limit bounds the connections: half of it, or what is left of it beside those that wait to be taken."""


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Return what holds many connections of this process until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with ExitStack() as stack:
        yield stack
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def start_with_files(folder: Path, files: int) -> Server:
    (folder / "few.py").write_text(FEW_FILES)
    return run_server(folder / "few.py", save_tiny(folder), files)


def be_honest(server: Server) -> HTTPConnection:
    """Return the connection of an honest client, from another address."""
    return HTTPConnection(*server.place, timeout=60, source_address=(OTHER, 0))


def ask(connection: HTTPConnection) -> float:
    """Return the seconds of a request."""
    began = time.monotonic()
    connection.request("POST", "/predict", PHOTO)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return time.monotonic() - began


def end(server: Server) -> list[dict[str, str]]:
    """End a server, and return the lines of its log that are no requests."""
    server.process.send_signal(signal.SIGTERM)
    done = server.process.wait()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert not [line for line in lines if "traceback" in line], done.stderr
    return [line for line in lines if line["level"] != "info"]


def is_closed(connection: socket.socket) -> bool:
    """Say whether the server has closed a connection: reset it where it had not read all, else ended it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.thorough
def test_who_holds_many_loses_the_oldest(tmp_path: Path, held: ExitStack) -> None:
    server = start_with_files(tmp_path, 600)  # so it keeps 268
    kept, fresh = held.enter_context(closing(be_honest(server))), held.enter_context(closing(be_honest(server)))
    ask(kept)
    many = [held.enter_context(server.connect(b"GET /heal")) for _ in range(400)]
    assert ask(fresh) < 1
    assert ask(kept) < 1, "it is the only one of its address, however old"
    many[-1].sendall(b"th HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert many[-1].recv(100).startswith(b"HTTP/1.1 200"), "the newest may still ask"
    assert is_closed(many[0])
    warnings = end(server)
    assert [line["event"] for line in warnings] == [
        "too many connections are open; those that ask for nothing are closed"
    ]


HALF = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"


def test_requests_that_never_end_shut_no_other_address_out(tmp_path: Path, held: ExitStack) -> None:
    server = start_with_files(tmp_path, 4096)
    halves = [held.enter_context(server.connect(HALF)) for _ in range(300)]
    wait_until(lambda: server.measure("vitrail_held_images") == 256, server.process)
    with closing(be_honest(server)) as honest:
        assert ask(honest) < 1
        assert ask(honest) < 1
    answers = [half for half in halves if select.select([half], [], [], 0)[0]]
    assert len(answers) == 300 - 255
    assert {half.recv(12) for half in answers} == {b"HTTP/1.1 429"}
    held.close()
    assert end(server) == []


@pytest.mark.thorough
def test_more_than_the_system_lets_it_open_is_a_line_of_the_log(tmp_path: Path, held: ExitStack) -> None:
    server = start_with_files(tmp_path, 200)
    server.process.send_signal(signal.SIGSTOP)  # so all of them wait to be taken at once
    for _ in range(400):
        held.enter_context(socket.create_connection(server.place, timeout=60))
    server.process.send_signal(signal.SIGCONT)
    with closing(be_honest(server)) as honest:
        ask(honest)
    events = [line["event"] for line in end(server)]
    assert events.count("socket.accept() out of system resource") == 1
