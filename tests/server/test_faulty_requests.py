"""What a real server answers to bytes that are no request: JSON, one line in the log, and nobody else feels it."""

import json
import signal
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from support.forked import wait_until
from support.serving import Server, start
from support.tiny_model import save_tiny

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
POST = b"POST /predict HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
TLS = b"\x16\x03\x01\x00\xf5\x01\x00\x00\xf1\x03\x03" + bytes(range(240))
FAULTS = {
    "TLS": (TLS, 400, "this is HTTPS, and the server speaks HTTP; ask at http://, or put a proxy before it"),
    "TLS with a line": (b"\x16\x03\x01\x02\x00nonsense\r\n\r\n", 400, "this is HTTPS"),
    "no text": (b"\x00\x01\xff\r\n\r\n", 400, "the request is no valid HTTP (illegal request line)"),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400, "no valid HTTP (illegal request line)"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505, "HTTP/2.0 is not spoken; ask in HTTP/1.1"),
    "a path that is no ASCII": ("GET /h\u00e9 HTTP/1.1\r\n\r\n".encode(), 400, "(illegal request line)"),
    "a long path": (b"GET /" + b"a" * 70_000, 431, "the request's header has more than 16,384 bytes"),
    "a longer path": (b"GET /" + b"a" * 3_000_000, 431, "the request's header has more than 16,384 bytes"),
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", 400, "(missing mandatory Host: header)"),
    "two Hosts": (GET + HOST + b"\r\n", 400, "(found multiple Host: headers)"),
    "a header without a name": (GET + b": secret\r\n\r\n", 400, "(illegal header line)"),
    "10,000 headers": (GET + b"a: b\r\n" * 10_000 + b"\r\n", 400, "the request has more than 100 headers"),
    "no length": (POST + b"Content-Length: secret\r\n\r\n", 400, "(bad Content-Length)"),
    "a length below 0": (POST + b"Content-Length: -5\r\n\r\n", 400, "(bad Content-Length)"),
    "a length of 5,000 digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "(bad Content-Length)"),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "(conflicting Content-Length"),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "(only Transfer-Encoding: chunked is supported)"),
    "no chunk": (CHUNKED + b"secret\r\n", 400, "(illegal chunk header)"),
    "no chunk after a chunk": (CHUNKED + b"1\r\nx\r\n" + TLS + b"\r\n", 400, "(illegal chunk header)"),
    "a long line before a chunk": (CHUNKED + b"1;" + b"a" * 70_000 + b"\r\nx\r\n", 431, "more than 16,384 bytes"),
    "a body for another name": (
        b"POST /predict HTTP/1.1\r\nHost: evil.org\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000),
        421, "this server was not told that it is called 'evil.org'",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(save_tiny(tmp_path_factory.mktemp("served")), "--timeout-s", 4)
    yield running
    running.process.send_signal(signal.SIGTERM)
    done = running.process.wait()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert not [line for line in lines if line["level"] != "info"], done.stderr
    assert "secret" not in done.stderr


def read_answer(text: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers of the only answer of a connection."""
    head, _, body = text.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(body) == int(headers["content-length"])
    return int(status.split()[1]), json.loads(body), headers


def read_log(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.process.err.splitlines()]


def receive_status(connection: socket.socket) -> int:
    """Read one answer, and return its status."""
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_no_request_is_answered_as_every_other_refusal(server: Server, kind: str, is_done: bool) -> None:
    text, status, reason = FAULTS[kind]
    before = server.measure("vitrail_requests_total{")
    got, found, headers = read_answer(server.exchange(text, is_done=is_done))
    assert (got, list(found)) == (status, ["error"])
    assert reason in found["error"]
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert server.measure("vitrail_requests_total{") == before + 2, "it is counted, and asking for counts is too"
    logged = [line for line in read_log(server) if line.get("id") == headers["x-request-id"]]
    assert [line["status"] for line in logged] == [status]


def test_requests_before_a_fault_are_answered(server: Server) -> None:
    for fault in (TLS, b"\x00\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"):
        answer = server.exchange(GET + b"\r\n" + fault + GET + b"\r\n")
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert answer.count(b"HTTP/1.1 400 Bad Request") == 1
        assert b"is no valid HTTP" in answer


@pytest.mark.thorough
def test_headers_are_counted_before_they_are_taken_apart(server: Server) -> None:
    most = GET + b"a: b\r\n" * 98 + b"Connection: close\r\n\r\n"  # with Host, 100
    assert server.exchange(most).startswith(b"HTTP/1.1 200 OK")
    body = b"\n" * 200
    whole = POST + b"Content-Type: text/plain\r\nContent-Length: 200\r\n\r\n" + body
    assert server.exchange(whole).startswith(b"HTTP/1.1 415")
    answer = server.exchange(GET + b"\r\n" + GET + b"a: b\r\n" * 100 + b"\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert answer.count(b"the request has more than 100 headers") == 1


def test_a_fault_after_the_answer_ends_the_connection(server: Server) -> None:
    unwanted = POST + b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect(unwanted + b"1\r\nx\r\n") as connection:
        assert receive_status(connection) == 415
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_another_protocol_is_not_taken_up(server: Server, protocol: bytes) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    with server.connect(GET + upgrade) as connection:
        assert receive_status(connection) == 200
        connection.sendall(GET + b"\r\n")
        assert receive_status(connection) == 200


def test_a_form_that_is_none_has_one_line_in_the_log(server: Server) -> None:
    wait_until(lambda: server.ask("GET", "/nowhere")[2]["x-request-id"] in server.process.err)
    before = len(read_log(server))
    for form in (b"secret", b"--x--\r\n" + b"secret" * 1000):
        assert server.ask("POST", "/predict", form, content_type="multipart/form-data; boundary=x")[0] == 400
    last = server.ask("GET", "/nowhere")[2]["x-request-id"]
    wait_until(lambda: last in server.process.err)
    assert [line["event"] for line in read_log(server)[before:]] == ["request"] * 3
