"""A real server process, asked by real clients: honest, hostile, slow and gone."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.chromium import CHROMIUM, Page
from support.forked import python, wait_until
from support.serving import FORM, Server, encoded, form, run_server, start
from support.tiny_model import save_tiny
from vitrail.cli.app import main
from vitrail.errors import ConfigError
from vitrail.images.formats import READ
from vitrail.images.preprocess import Preprocess
from vitrail.inference.predictor import open_predictor
from vitrail.server.batching import Batcher, WorkFailed
from vitrail.server.settings import Limits, Serving, read_key
from vitrail.server.upload import Refused, Room, read_files

UNKNOWN = f"not an image of a known format; read are {READ}"
KEY = "a-key-that-nobody-guesses"
LIMITS = Limits(max_bytes=200_000, max_files=4, max_pixels=1_000_000, queue=40, timeout_s=2)
FLAGS = [
    "--max-bytes", LIMITS.max_bytes, "--max-files", LIMITS.max_files, "--max-pixels", LIMITS.max_pixels,
    "--queue", LIMITS.queue, "--timeout-s", LIMITS.timeout_s, "--topk", 3, "--max-batch", 8,
]  # fmt: skip


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """Return JPEGs, no two alike."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(40):
        colour = generator.integers(0, 256, 3)
        pixels = np.clip(colour + generator.integers(-40, 41, (40 + number, 60, 3)), 0, 255).astype(np.uint8)
        found.append(encoded(Image.fromarray(pixels)))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    running = start(checkpoint, *FLAGS)
    yield running
    running.process.send_signal(signal.SIGTERM)
    done = running.process.wait()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert not [line for line in lines if line["level"] not in ("info", "warning")], done.stderr
    assert "secret" not in done.stderr
    requests = [line for line in lines if line["event"] == "request"]
    assert all({"id", "method", "path", "status", "ms", "time"} <= line.keys() for line in requests)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Return the probability of each class of each photo, as `vitrail predict` gives them."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.jpg" for number in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        path.write_bytes(photo)
    predictor = open_predictor(checkpoint, topk=3, device="cpu")
    return [
        {predictor.classes[k]: p for k, p in zip(row.choices, row.probabilities, strict=True)}
        for row in predictor.predict(paths)
    ]


def probabilities(result: dict[str, Any]) -> dict[str, float]:
    return {choice["name"]: choice["probability"] for choice in result["topk"]}


def test_answers_are_those_of_predict_however_they_are_asked_for(
    server: Server, photos: list[bytes], expected: list[dict[str, float]]
) -> None:
    status, found, headers = server.ask("POST", "/predict", photos[0], content_type="image/jpeg")
    assert (status, found["model"]) == (200, "tnt_ti_patch16_224")
    assert headers["cache-control"] == "no-store"
    assert probabilities(found["results"][0]) == pytest.approx(expected[0], abs=1e-6)
    assert [choice["class"] for choice in found["results"][0]["topk"]] == [
        ("blue", "green", "red").index(name) for name in expected[0]
    ]
    for path, body in (("/predict", iter([photos[1][:10], photos[1][10:]])), ("/predict", photos[1])):
        assert probabilities(server.ask("POST", path, body)[1]["results"][0]) == pytest.approx(expected[1], abs=1e-6)
    status, found, _ = server.send(*photos[2:6])
    assert [probabilities(result) for result in found["results"]] == [
        pytest.approx(one, abs=1e-6) for one in expected[2:6]
    ]


def test_each_of_many_clients_at_once_gets_its_own_answer(
    server: Server, photos: list[bytes], expected: list[dict[str, float]]
) -> None:
    def ask(number: int) -> None:
        status, found, _ = server.ask("POST", "/predict", photos[number])
        assert status == 200, found
        assert probabilities(found["results"][0]) == pytest.approx(expected[number], abs=1e-6)

    before = server.measure("vitrail_batch_images_count")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, list(range(40)) * 3))
    batches = server.measure("vitrail_batch_images_count") - before
    assert batches < 100, "120 images were computed one by one"
    assert server.measure("vitrail_held_images") == 0


def test_a_model_of_many_channels_and_any_number_of_classes_answers_as_it_was_made(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 65536, (40, 50, 5)).astype(np.uint16) for _ in range(4)]
    paths = [tmp_path / f"{number}.npy" for number in range(4)]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    channels = Preprocess(size=(32, 32), mean=(0.5,) * 5, std=(0.25,) * 5, channels=5, bits=16)
    checkpoint = save_tiny(tmp_path, channels, thresholds=(0.5, 0.5, 0.0))
    rows = open_predictor(checkpoint, device="cpu").predict(paths)
    answering = start(checkpoint, "--topk", 9)
    status, found, _ = answering.send(*(path.read_bytes() for path in paths), encoded(Image.new("RGB", (40, 40))))
    assert status == 200
    assert "has 3 channels, and 5 are wanted" in found["results"].pop()["error"]
    for result, row in zip(found["results"], rows, strict=True):
        assert row.choices
        assert [choice["class"] for choice in result["labels"]] == list(row.choices)
        assert [choice["probability"] for choice in result["labels"]] == pytest.approx(row.probabilities, abs=1e-6)
    assert "topk" not in found["results"][0]
    answering.process.send_signal(signal.SIGTERM)
    done = answering.process.wait()
    assert done.returncode == 0
    assert "--topk" not in done.stderr, "a limit that is never reached is nothing to warn of"


def test_an_answer_is_not_held_back(server: Server) -> None:
    with closing(HTTPConnection(*server.place, timeout=60)) as connection:
        seconds = []
        for _ in range(20):
            began = time.monotonic()
            connection.request("GET", "/health")
            connection.getresponse().read()
            seconds.append(time.monotonic() - began)
    assert min(seconds[1:]) < 0.03  # a delayed acknowledgement takes 0.04


def test_unreadable_images_get_their_reason_and_the_others_their_answer(server: Server, photos: list[bytes]) -> None:
    status, found, _ = server.send(photos[0], b"no image", photos[1][:200], b"")
    assert status == 200
    assert [result.get("error") for result in found["results"]][:2] == [None, UNKNOWN]
    assert found["results"][2]["error"]
    assert found["results"][3] == {"error": "the file is empty"}
    status, found, _ = server.ask("POST", "/predict", b"no image")
    assert (status, found["results"]) == (422, [{"error": UNKNOWN}])


def hostile_images() -> dict[str, bytes]:
    photo = encoded(Image.new("RGB", (64, 64), "red"), progressive=True)
    scan = photo.index(b"\xff\xda")
    bomb = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    return {
        "has more than 1,000,000 pixels": bytes(bomb),
        "has 1001 x 1000 pixels; at most 1,000,000 are taken": encoded(Image.new("1", (1001, 1000)), "PNG"),
        "has more than 100 scans": photo[:scan] + photo[scan : scan + 20] * 101 + photo[scan:],
        f"holds EPS, which is not read; save it as one of {READ}": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments"
        ),
    }


@pytest.mark.parametrize("reason", hostile_images())
def test_an_image_that_is_an_attack_is_refused_by_its_header(server: Server, reason: str) -> None:
    began = time.monotonic()
    status, found, _ = server.ask("POST", "/predict", hostile_images()[reason])
    assert status == 422
    assert reason in found["results"][0]["error"]
    assert time.monotonic() - began < 2


TOO_LARGE = bytes(LIMITS.max_bytes + 1)
REFUSALS = [
    ({"body": b"x", "content_type": "application/json"}, 415, "application/json is not taken; send multipart/form"),
    ({"body": b"a=b", "content_type": "application/x-www-form-urlencoded"}, 415, "is not taken"),
    ({"body": b"x", "content_encoding": "gzip"}, 415, "the body is compressed"),
    ({"body": b""}, 400, "the request holds no image"),
    ({"body": b"x", "content_type": "multipart/form-data"}, 400, "without its boundary"),
    ({"body": b"x", "content_type": f"multipart/form-data; boundary={'b' * 300}"}, 400, "Boundary length 300"),
    ({"body": b"", "content_type": FORM}, 400, "ends in the middle"),
    ({"body": b"---b---\r\n", "content_type": FORM}, 400, "holds no file"),
    ({"body": b"nonsense", "content_type": FORM}, 400, "the form cannot be read"),
    ({"body": form(b"x")[:-12], "content_type": FORM}, 400, "ends in the middle"),
    ({"body": form(b"x").replace(b"; filename", b"; other"), "content_type": FORM}, 400, "a field that is no file"),
    ({"body": form(b"x").replace(b"form-data;", b"f" * 9000), "content_type": FORM}, 400, "header size exceeded"),
    ({"body": form(*[b"x"] * 5), "content_type": FORM}, 413, "more than 4 files"),
    ({"body": form(b"x", TOO_LARGE), "content_type": FORM}, 413, "file 2 has more than 200,000 bytes"),
    ({"body": TOO_LARGE}, 413, "file 1 has more than 200,000 bytes"),
    ({"body": iter([TOO_LARGE])}, 413, "file 1 has more than 200,000 bytes"),
    ({"body": bytes(LIMITS.request_bytes + 1)}, 413, "the request has 1,848,577 bytes; at most 1,848,576"),
]


@pytest.mark.parametrize(("request_", "status", "reason"), REFUSALS, ids=[reason for *_, reason in REFUSALS])
def test_a_request_that_cannot_be_answered_gets_the_reason(
    server: Server, request_: dict[str, Any], status: int, reason: str
) -> None:
    got, found, _ = server.ask("POST", "/predict", **request_)
    assert got == status, found
    assert reason in found["error"]
    server.until_empty()


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/predict", 405, "GET is not answered here; this path takes POST"),
        ("POST", "/health", 405, "POST is not answered here; this path takes GET"),
        ("GET", "/docs", 404, "nothing is here; /openapi.json says what there is"),
        ("GET", "/%2e%2e/etc/passwd", 404, "nothing is here; /openapi.json says what there is"),
    ],
)
def test_what_is_not_there_is_answered_in_json(
    server: Server, method: str, path: str, status: int, reason: str
) -> None:
    got, found, headers = server.ask(method, path)
    assert (got, found) == (status, {"error": reason})
    assert headers["x-content-type-options"] == "nosniff"
    assert len(headers["x-request-id"]) == 16


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics"])
def test_monitors_that_ask_for_the_head_alone_get_it(server: Server, path: str) -> None:
    with server.connect(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"


@pytest.mark.thorough
def test_slow_clients_are_not_waited_for(server: Server, photos: list[bytes]) -> None:
    slow = {
        "nothing": b"", "half a header": HEAD, "half a body": HEAD + b"Content-Length: 1000\r\n\r\nabc",
        "second request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he",
        "rest of what was refused": HEAD.replace(b"image", b"text") + b"Content-Length: 1000\r\n\r\nabc",
    }  # fmt: skip
    began = time.monotonic()
    connections = {name: server.connect(text) for name, text in slow.items()}
    received = {name: b"" for name in slow}
    for name, connection in connections.items():
        while data := _received(connection):
            received[name] += data
        connection.close()
    assert LIMITS.timeout_s <= time.monotonic() - began < 4 * LIMITS.timeout_s
    starts = {name: text[9:12] for name, text in received.items()}
    assert starts == {
        "nothing": b"", "half a header": b"", "half a body": b"408", "second request": b"200",
        "rest of what was refused": b"415",
    }  # fmt: skip
    assert b"the request did not arrive in 2 s" in received["half a body"]
    assert b"connection: close" in received["half a body"]
    server.until_empty()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def test_who_does_not_read_the_answers_is_left(server: Server) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000_000)


def test_clients_that_leave_leave_nothing_behind(server: Server, photos: list[bytes]) -> None:
    whole = HEAD + f"Content-Length: {len(photos[0])}\r\n\r\n".encode() + photos[0]
    for size in (len(HEAD) // 2, len(HEAD) + 30, len(whole) - 1, len(whole)):
        for _ in range(5):
            server.connect(whole[:size]).close()
    server.until_empty()
    assert server.send(photos[0])[0] == 200


def test_a_full_server_says_when_to_come_again(server: Server, photos: list[bytes]) -> None:
    partial = HEAD + b"Content-Length: 1000\r\n\r\nabc"
    connections = [server.connect(partial) for _ in range(LIMITS.queue)]
    wait_until(lambda: server.measure("vitrail_held_images") == LIMITS.queue, server.process)
    status, found, headers = server.send(photos[0])
    assert (status, found["error"]) == (429, "too many images are waiting; try again later")
    assert int(headers["retry-after"]) >= 1
    assert server.ask("GET", "/ready")[0] == 503
    assert server.ask("GET", "/health")[0] == 200
    for connection in connections:
        connection.close()
    server.until_empty()
    assert server.ask("GET", "/ready")[0] == 200


def test_metrics_and_openapi_say_what_there_is(server: Server) -> None:
    status, _, headers = server.ask("GET", "/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert server.measure("process_resident_memory_bytes") > 1e6
    assert server.measure('vitrail_images_total{outcome="classified"}') > 0
    described = server.ask("GET", "/openapi.json")[1]
    assert set(described["paths"]) == {"/predict", "/explain", "/health", "/ready", "/metrics"}
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert set(described["components"]["schemas"]["Choice"]["properties"]) == {"class", "name", "probability"}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_shows_pictures_classes_and_errors(
    server: Server, photos: list[bytes], expected: list[dict[str, float]], tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("good.jpg", "broken.jpg", "large.png")]
    for path, content in zip(paths, (photos[0], b"broken", TOO_LARGE), strict=True):
        path.write_bytes(content)
    policy = server.ask("GET", "/")[2]["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    with Page() as page:
        page.resize(1366, 768)
        page.open(server.url)
        page.press("Tab")
        assert page.ask("document.activeElement.id") == "files"
        page.choose("#files", paths)
        page.until("document.querySelectorAll('.classes, .problem').length === 3")
        name, share = next(iter(expected[0].items()))
        assert page.ask("document.querySelector('.answer-of h2').textContent") == name
        rows = page.ask("[...document.querySelectorAll('.classes li')].map(row => row.innerText)")
        assert rows[0].split("\n") == [name, f"{100 * share:.1f} %"]
        assert len(rows) == 3
        assert page.ask("document.querySelector('meter').value") == pytest.approx(share, abs=1e-6)
        assert "ms in the server" in page.ask("document.querySelector('.told:has(meter)').innerText")
        problems = page.ask("[...document.querySelectorAll('.problem')].map(line => line.textContent)")
        assert sorted(problems) == [
            f"This image cannot be read: {UNKNOWN}",
            "file 1 has more than 200,000 bytes",
        ]
        shown = "one.querySelector('p') || one.querySelector('img').naturalWidth > 0"
        page.until(f"[...document.querySelectorAll('.picture')].every(one => {shown})")
        assert page.ask("document.querySelectorAll('.picture img').length") == 1
        for number, (kind, event, key) in enumerate(
            [("DragEvent", "drop", "dataTransfer"), ("ClipboardEvent", "paste", "clipboardData")]
        ):
            page.ask(f"""{{
                const data = new DataTransfer();
                data.items.add(new File(["broken"], "x.png", {{type: "image/png"}}));
                document.body.dispatchEvent(new {kind}("{event}", {{bubbles: true, cancelable: true, {key}: data}}));
            }}""")
            page.until(f"document.querySelectorAll('.problem').length === {3 + number}")
        assert page.ask("made('p', '', 'a\\u202e\\u001b\\u200b').textContent") == r"a\u202e\u001b\u200b"
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        page.resize(390, 844, is_phone=True)
        assert page.ask("document.documentElement.scrollWidth <= 390")
        assert not [text for text in page.complaints if "422" not in text and "413" not in text]
    server.until_empty()


@pytest.fixture
def guarded(checkpoint: Path) -> Iterator[Server]:
    running = start(checkpoint, "--cors", "https://example.org", VITRAIL_API_KEY=KEY)
    yield running
    running.process.kill()


def test_a_key_is_asked_for_and_what_is_begun_is_finished_before_the_end(guarded: Server, photos: list[bytes]) -> None:
    wrong_keys = ("Bearer wrong", f"Basic {KEY}", "Bearer \u00e9".encode().decode("latin-1"))
    wrong_headers = [{}, *({"authorization": key} for key in wrong_keys)]
    for path, method in (("/predict", "POST"), ("/explain", "POST"), ("/metrics", "GET")):
        for wrong in wrong_headers:
            status, found, headers = guarded.ask(method, path, photos[0] if method == "POST" else None, **wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert "send it as Authorization: Bearer KEY" in found["error"]
    right = {"authorization": f"Bearer {KEY}"}
    assert guarded.send(photos[0], **right)[0] == 200
    assert [guarded.ask("GET", path)[0] for path in ("/", "/health", "/ready")] == [200] * 3
    assert 'id="key"' in guarded.ask("GET", "/")[1]["text"]
    for origin, allowed in (("https://example.org", "https://example.org"), ("https://evil.org", None)):
        _, _, headers = guarded.send(photos[0], origin=origin, **right)
        assert headers.get("access-control-allow-origin") == allowed

    # a request whose body is on its way when the end is asked for
    whole = HEAD + f"Authorization: Bearer {KEY}\r\nContent-Length: {len(photos[0])}\r\n\r\n".encode() + photos[0]
    idle = guarded.connect()
    with guarded.connect(whole[:-5]) as begun:
        wait_until(lambda: "vitrail_held_images 1.0" in guarded.ask("GET", "/metrics", **right)[1]["text"])
        guarded.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(guarded), guarded.process)
        begun.sendall(whole[-5:])
        answer = HTTPResponse(begun)
        answer.begin()
        assert answer.status == 200
        assert len(json.loads(answer.read())["results"][0]["topk"]) == 3
    idle.close()
    done = guarded.process.wait()
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stderr


def refuses(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


TROUBLED = """
import dataclasses, sys, time
from concurrent.futures import ThreadPoolExecutor
from vitrail.inference.predictor import open_predictor
from vitrail.server.app import Served, build_app
from vitrail.server.connections import format_url, listen, run
from vitrail.server.decoders import Decoders
from vitrail.server.log import write_json_lines
from vitrail.server.settings import Limits, Serving

predictor = open_predictor(sys.argv[1], topk=1, device="cpu")

def answer(images):
    if images.mean() > 1:  # a white image
        raise RuntimeError("the engine is out of order")
    if images.mean() < -1:  # a black one
        time.sleep(2.5)
    return predictor.network.run(images)

write_json_lines()
serving = Serving(port=0, limits=Limits(timeout_s=1))
network = dataclasses.replace(predictor.network, run=answer)
served = Served(dataclasses.replace(predictor, network=network), ThreadPoolExecutor(1))
listening = listen(serving)
decoders = Decoders(predictor.preprocess, serving.limits)
app = build_app(served, serving, decoders)
run(app, serving, listening, lambda: print(format_url(listening), flush=True))
decoders.close()
"""


@pytest.mark.thorough
def test_an_engine_that_fails_or_hangs_is_told_and_worked_with_again(checkpoint: Path, tmp_path: Path) -> None:
    white, black, gray = (encoded(Image.new("RGB", (32, 32), (level,) * 3)) for level in (255, 0, 128))
    (tmp_path / "troubled.py").write_text(TROUBLED)
    troubled = run_server(tmp_path / "troubled.py", checkpoint)
    assert troubled.send(gray)[0] == 200
    status, found, _ = troubled.send(white)
    assert (status, found["error"]) == (503, "the engine failed; the server's log has the reason")
    assert troubled.ask("GET", "/health")[:2] == (503, {"status": "the engine failed"})
    assert troubled.ask("GET", "/ready")[0] == 503
    assert troubled.send(gray)[0] == 200
    assert troubled.ask("GET", "/health")[0] == 200
    status, found, _ = troubled.send(black)
    assert (status, found["error"]) == (503, "the request could not be answered in 1 s")
    wait_until(lambda: troubled.ask("GET", "/health")[1] == {"status": "the engine does not answer"}, troubled.process)
    wait_until(lambda: troubled.ask("GET", "/health")[0] == 200, troubled.process)
    assert troubled.send(gray)[0] == 200
    troubled.process.send_signal(signal.SIGINT)
    done = troubled.process.wait()
    assert done.returncode == 0, done.stderr
    assert "the engine is out of order" in done.stderr


def test_without_cors_no_origin_is_allowed(server: Server, photos: list[bytes]) -> None:
    assert "access-control-allow-origin" not in server.send(photos[0], origin="https://example.org")[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; it must be at least 1"),
        ({"max_wait_ms": -1}, "max_wait_ms is -1; it must be at least 0"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
        ({"topk": 0, "port": 70_000}, "topk is 0; it must be at least 1; port is 70000; it must be 1 to 65535, or"),
        ({"limits": Limits(timeout_s=0)}, "timeout_s is 0; it must be above 0"),
        ({"limits": Limits(queue=0)}, "queue is 0"),
        ({"limits": Limits(decode_s=float("nan"))}, "max_decode_s is nan; it must be above 0"),
        ({"cors": ("*",)}, r"cors=\*: is no origin; write it as https://example.org"),
        ({"cors": ("https://example.org/",)}, "is no origin"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Serving(**wrong)


def test_a_server_that_anyone_may_ask_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("127.0.0.1", "127.5.5.5", "::1", "localhost", "0.0.0.0", "::", "example.org")
    assert [Serving(host=host).is_open for host in hosts] == [False] * 4 + [True] * 3
    assert not Serving(host="0.0.0.0", api_key="x").is_open
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key(tmp_path / "key") == KEY
    monkeypatch.delenv("VITRAIL_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("VITRAIL_API_KEY", "two words")
    with pytest.raises(ConfigError, match="VITRAIL_API_KEY: holds no key; it must be one word of ASCII"):
        read_key(None)
    for content in (b"", b"\xff\xff", "\u00e9".encode()):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(ConfigError, match="holds no key"):
            read_key(tmp_path / "key")
    with pytest.raises(ConfigError, match=r"api_key_file=.*: cannot be read \(No such file or directory\)"):
        read_key(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"api_key_file=.*: cannot be read \(is a device or a pipe, no regular"):
            read_key(endless)
    (tmp_path / "large").write_bytes(b"a" * 70_000)
    with pytest.raises(ConfigError, match=r"cannot be read \(has 70,000 bytes, and 65,536 are the most\)"):
        read_key(tmp_path / "large")


def test_a_port_that_is_taken_is_one_line(server: Server, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    done = python("-m", "vitrail", "serve", checkpoint, "--port", server.place[1])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --port {server.place[1]}: is taken on 127.0.0.1; choose another, or 0")
    assert done.stderr.count("\n") == 1


def test_what_is_not_installed_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import vitrail.api.serving

    monkeypatch.setattr(vitrail.api.serving, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(SystemExit):
        main(["serve", str(checkpoint)])
    assert capsys.readouterr().err == "error: serve needs uvicorn; run: pip install 'vitrail[serve]'\n"


# What follows needs no server.


@given(st.data())
def test_a_form_is_read_alike_however_it_is_cut(data: st.DataObject) -> None:
    files = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
    body = form(*files)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    hidden = [file for file in files if b"\r\n---b-" in b"\r\n" + file]
    if not hidden:
        assert asyncio.run(read(parts, FORM)) == files


@given(
    st.lists(st.sampled_from([form(b"ab"), b"---b-", b"\r\n", b"--", b"Content-Disposition: x", b"\x00", b";", b":"]))
)
def test_a_form_of_anything_is_read_or_refused(parts: list[bytes]) -> None:
    with contextlib.suppress(Refused):
        assert asyncio.run(read(parts, FORM))


async def read(parts: list[bytes], kind: str) -> list[bytes]:
    async def chunks() -> Any:
        for part in parts:
            yield part

    room = Room(LIMITS)
    with room.share() as share:
        found = await read_files({"content-type": kind}, chunks(), LIMITS, share)
        assert room.images == len(found)
    assert room.images == room.bytes == 0
    return found


def test_bytes_of_all_requests_together_are_bounded() -> None:
    room = Room(Limits())
    with room.share() as one, room.share() as other:
        one.take(size=Limits().held_bytes - 10)
        other.take(size=10)
        with pytest.raises(Refused, match="too many images are waiting"):
            other.take(size=1)
    assert room.bytes == 0


def test_who_holds_the_most_of_a_full_room_gives_some_up() -> None:
    room = Room(Limits(queue=4))
    much = [room.share("much") for _ in range(4)]
    little, other = room.share("little"), room.share("other")
    given_up: list[int] = []
    for number, share in enumerate(much):
        share.on_given_up = lambda number=number: given_up.append(number)
        share.take(images=1)
    little.take(images=1)
    assert (given_up, room.images) == ([3], 4), "the last that came"
    with pytest.raises(Refused, match="too many images are waiting"):
        much[3].take(size=1)
    with pytest.raises(Refused, match="too many images are waiting"):
        room.share("much").take(images=1)
    other.take(images=1)
    assert (given_up, room.images) == ([3, 2], 4)
    with pytest.raises(Refused, match="too many images are waiting"):
        room.share("other").take(images=1)  # which would hold as many as the others then
    for share in (*much, little, other):
        with share:
            pass
    assert room.images == room.bytes == 0


def batched(work: Any, most: int = 4, wait_s: float = 0.01) -> Any:
    """Return what runs a test with a batcher whose batches are noted."""
    seen: list[list[int]] = []

    def noted(asked: list[int]) -> list[int]:
        seen.append(asked)
        return work(asked)

    async def run(test: Any) -> list[list[int]]:
        with ThreadPoolExecutor(1) as worker:
            batcher: Batcher[int, int] = Batcher(noted, worker, most=most, wait_s=wait_s)
            running = asyncio.create_task(batcher.run())
            await test(batcher)
            running.cancel()
        return seen

    return lambda test: asyncio.run(run(test))


def test_batches_are_no_larger_than_allowed_and_keep_their_order() -> None:
    async def test(batcher: Any) -> None:
        assert await asyncio.gather(*map(batcher.ask, range(10))) == [n * n for n in range(10)]

    assert batched(lambda asked: [n * n for n in asked])(test) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batched(lambda asked: [n * n for n in asked], wait_s=0)(test) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_who_stops_waiting_is_not_worked_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(asked: list[int]) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        return asked

    async def test(batcher: Any) -> None:
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.to_thread(begun.wait, 10)
        assert batcher.busy_s > 0
        others = [asyncio.create_task(batcher.ask(n)) for n in (2, 3)]
        await asyncio.sleep(0.05)
        others[0].cancel()
        go_on.set()
        assert (await first, await others[1]) == (1, 3)
        assert batcher.busy_s == 0

    assert batched(work, most=2)(test) == [[1], [3]]


def test_a_batch_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    def work(asked: list[int]) -> list[int]:
        if 13 in asked:
            raise RuntimeError("out of luck")
        return asked

    async def test(batcher: Any) -> None:
        with pytest.raises(WorkFailed):
            await batcher.ask(13)
        assert batcher.has_failed
        assert await batcher.ask(1) == 1
        assert not batcher.has_failed

    batched(work)(test)
    assert "out of luck" in caplog.text


@pytest.mark.thorough
def test_a_thousand_clients_at_once_are_answered_or_told_to_come_again(
    checkpoint: Path, photos: list[bytes], expected: list[dict[str, float]]
) -> None:
    for queue in (2000, 50):
        server = start(checkpoint, "--queue", queue, "--timeout-s", 60)
        gate = threading.Barrier(1000)
        statuses: list[int] = []

        def ask(number: int, server: Server = server, gate: Any = gate, statuses: Any = statuses) -> None:
            photo = number % len(photos)
            gate.wait(60)
            status, found, _ = server.ask("POST", "/predict", photos[photo])
            statuses.append(status)
            if status == 200:
                assert probabilities(found["results"][0]) == pytest.approx(expected[photo], abs=1e-6)

        with ThreadPoolExecutor(1000) as pool:
            list(pool.map(ask, range(1000)))
        assert set(statuses) <= {200, 429}
        assert len(statuses) == 1000
        if queue == 2000:
            assert set(statuses) == {200}
        assert server.measure("vitrail_held_images") == 0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait().returncode == 0


@pytest.mark.thorough
def test_memory_stays_as_it_is_over_thousands_of_requests(checkpoint: Path, photos: list[bytes]) -> None:
    server = start(checkpoint)
    with closing(HTTPConnection(*server.place, timeout=60)) as connection:

        def resident(requests: int) -> float:
            for number in range(requests):
                body = photos[number % len(photos)] if number % 7 else b"broken"
                connection.request("POST", "/predict", body)
                connection.getresponse().read()
            return server.measure("process_resident_memory_bytes")

        before = resident(1500)
        after = resident(3000)
    server.process.kill()
    assert after < before + 8e6
