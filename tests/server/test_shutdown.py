"""A server that is told to end while clients keep their connections: none of them loses a request."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from PIL import Image

from support.forked import wait_until
from support.serving import Server, encoded, start
from support.tiny_model import save_tiny

PHOTO = encoded(Image.new("RGB", (60, 40), "red"))
ASK = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture
def server(checkpoint: Path) -> Iterator[Server]:
    running = start(checkpoint, "--timeout-s", 10)
    yield running
    running.process.kill()


def ends_well(server: Server) -> bool:
    done = server.process.wait()
    return done.returncode == 0 and "error" not in done.stderr


def ask_until_told(server: Server, pause_s: float, started: threading.Barrier) -> int:
    """Ask on one connection until an answer says that it is the last, and return how many there were."""
    with closing(HTTPConnection(*server.place, timeout=30)) as connection:
        for number in range(1000):
            connection.request("POST", "/predict", PHOTO)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            if answer.getheader("connection") == "close":
                return number + 1
            if number == 0:
                started.wait(30)
            time.sleep(pause_s)
    raise AssertionError("nothing was said of the end")


@pytest.mark.parametrize("turn", range(3))
def test_no_client_that_keeps_its_connection_loses_a_request(server: Server, turn: int) -> None:
    started = threading.Barrier(25)
    with ThreadPoolExecutor(24) as pool:
        clients = [pool.submit(ask_until_told, server, 0.01 + 0.02 * n, started) for n in range(24)]
        started.wait(30)
        time.sleep(0.1 * turn)
        server.process.send_signal(signal.SIGTERM)
        assert all(client.result() > 1 for client in clients)
    assert ends_well(server)


def test_connections_without_a_request_may_still_bring_one(server: Server) -> None:
    fresh, kept = server.connect(), server.connect(ASK)
    first = HTTPResponse(kept)
    first.begin()
    assert b"topk" in first.read()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(server), server.process)
    time.sleep(1)
    for connection in (fresh, kept):
        connection.sendall(ASK)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert b'"topk"' in answer
    assert ends_well(server)


def refuses(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.thorough
def test_idle_connections_are_not_waited_for_without_end(server: Server) -> None:
    idle = [server.connect() for _ in range(3)]
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert [read_all(connection) for connection in idle] == [b""] * 3
    assert ends_well(server)
    assert 4 < time.monotonic() - began < 10


def test_what_has_connected_is_answered_though_the_server_did_not_look_yet(server: Server) -> None:
    server.process.send_signal(signal.SIGSTOP)
    waiting = [server.connect(ASK) for _ in range(40)]
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGCONT)
    for connection in waiting:
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert ends_well(server)


def test_a_client_that_says_that_it_is_done_gets_its_answers(server: Server) -> None:
    for requests in (1, 3):
        connection = server.connect(ASK * requests)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
        assert answer.count(b"HTTP/1.1 200") == answer.count(b'"topk"') == requests
    connection = server.connect(ASK[:-3])  # but not if it broke off
    connection.shutdown(socket.SHUT_WR)
    assert read_all(connection) == b""
    server.until_empty()


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    with closing(connection):
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)
