"""Measure what others feel when the server is attacked within its limits, or told to end while they keep connections.

    uv run python benchmarks/serve_attack.py [ARTIFACT] [--seconds 20] [--attackers 16] [--ends 10]

Without an artifact, the weights of a model are drawn. An honest client sends one JPEG of 30 kB after another on a
connection that it keeps, from another address of this machine than the attackers, and then from theirs. For the ends,
clients that keep their connections ask until an answer says that it is the last. All of it stays on this machine.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import cyclopts
import numpy as np
from PIL import Image
from serve import measure, server, write_weights
from side_by_side import publish

from vitrail.images.synthetic import draw_photo

ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
CLIENTS = 24


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def honest_photo() -> bytes:
    """Return a JPEG of about 30 kB."""
    return encoded(Image.fromarray(draw_photo(0)).resize((320, 240)), quality=85)


def many_scans(side: int, scans: int) -> bytes:
    photo = encoded(Image.new("RGB", (side, side), "blue"), progressive=True)
    last = photo[photo.rindex(b"\xff\xda") : -2]
    return photo[:-2] + last * (scans - photo.count(b"\xff\xda")) + photo[-2:]


def scaled_ppm(side: int) -> bytes:
    return (
        b"P6 %d %d 254\n" % (side, side)
        + np.random.default_rng(0).integers(0, 255, 3 * side * side, np.uint8).tobytes()
    )


def whole(body: bytes) -> bytes:
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def attacks() -> dict[str, tuple[bytes, bytes]]:
    """Return what each kind sends: once, and then again and again for as long as the connection is kept."""
    photo, blank = honest_photo(), encoded(Image.new("P", (9, 9)), "GIF")
    remark = b"\0\0\0\0aaAa" + zlib.crc32(b"aaAa").to_bytes(4, "big")
    png = encoded(Image.new("RGB", (9, 9)), "PNG")
    large = np.asarray(Image.fromarray(draw_photo(1)).resize((5000, 4000)))
    files = {
        "the same JPEG of 30 kB": photo,
        "JPEG, 20 megapixels": encoded(Image.fromarray(large), quality=80),
        "JPEG, 11 megapixels in 95 scans": many_scans(3300, 95),
        "PPM of 255 levels, 2.4 MB": scaled_ppm(900),
        "PPM as text, 15 MB": b"P3 1800 1800 255\n" + b"100 " * (3 * 1800 * 1800),
        "PPM with a remark of 15 MB": b"P6 #" + b"a" * 15_000_000 + b"\n1 1 255\nabc",
        "BMP in runs, 49 megapixels": run_lengths(7000),
        "JPEG with 200,000 remarks": photo[:2] + b"\xff\xfe\0\2" * 200_000 + photo[2:],
        "PNG with 100,000 empty chunks": png[:33] + remark * 100_000 + png[33:],
        "GIF with 900,000 remarks": blank[:13] + b"!\xfe\x01a\0" * 900_000 + blank[13:],
    }
    boundary = b'---b-\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
    streams = {
        "chunks of one byte": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 4000),
        "a form of almost boundaries": (
            HEAD + b"Content-Type: multipart/form-data; boundary=-b-\r\nContent-Length: 20000000\r\n\r\n" + boundary,
            b"\r\n---b" * 8000,
        ),
        "requests of 2,000 headers": (
            b"",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
        ),
        "HTTPS": (b"", b"\x16\x03\x01\0\xf5\1\0\0\xf1\3\3" + bytes(240)),
        "requests one after another": (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200),
        "bodies that never end": (HEAD + b"Content-Length: 1000\r\n\r\nabc", b""),
    }
    return {name: (b"", whole(file)) for name, file in files.items()} | streams


def run_lengths(side: int) -> bytes:
    palette = bytes(64)
    row = b"\xfe\x12" * (side // 254) + bytes((side % 254, 0x34)) + b"\0\0"
    pixels = row * side + b"\0\1"
    offset = 14 + 40 + len(palette)
    numbers = (offset + len(pixels), 0, offset, 40, side, side, 1 | 4 << 16, 2, len(pixels), 0, 0, 16, 0)
    return b"BM" + b"".join(number.to_bytes(4, "little") for number in numbers) + palette + pixels


def attack(place: tuple[str, int], begin: bytes, again: bytes, until: float) -> None:
    """Send for as long as the server takes it, and begin anew where it does not."""
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(place, 10, (ATTACKER, 0)) as connection:
            connection.settimeout(1)
            connection.sendall(begin)
            while time.monotonic() < until:
                connection.sendall(again)
                with suppress(TimeoutError):
                    if not connection.recv(65536):
                        break


def ask(place: tuple[str, int], source: str, photo: bytes, lasting: float) -> tuple[list[float], Counter[int]]:
    """Return the seconds of each request of an honest client, and how often it got each status."""
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    connection = HTTPConnection(*place, timeout=60, source_address=(source, 0))
    until = time.monotonic() + lasting
    while not seconds or time.monotonic() < until:
        began = time.perf_counter()
        connection.request("POST", "/predict", photo)
        answer = connection.getresponse()
        answer.read()
        seconds.append(time.perf_counter() - began)
        statuses[answer.status] += 1
        time.sleep(0.02)
    return seconds, statuses


def besiege(
    honest: Executor, address: str, begin: bytes, again: bytes, attackers: int, seconds: float, source: str
) -> list[str]:
    """Return the cells of one row: requests, p50 and p99 in milliseconds, and what was not answered by 200."""
    place = (str(urlsplit(address).hostname), urlsplit(address).port or 0)
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=attack, args=(place, begin, again, until))
        for _ in range(attackers if begin + again else 0)
    ]
    for thread in threads:
        thread.start()
    time.sleep(min(1, seconds / 4))
    # in a process of its own, which the attacker's threads do not hold up
    took, statuses = honest.submit(ask, place, source, honest_photo(), max(1, until - time.monotonic())).result()
    for thread in threads:
        thread.join()
    took.sort()
    half, rare = (f"{1000 * took[int(share * (len(took) - 1))]:.0f}" for share in (0.5, 0.99))
    others = ", ".join(f"{count} x {status}" for status, count in statuses.items() if status != 200)
    return [str(len(took)), half, rare, others or "none"]


def end_with_clients(start: Callable[[], object]) -> tuple[int, int]:
    """Return how many requests were answered, and how many were lost, when a server is told to end amid them."""
    answered, lost = [0] * CLIENTS, [0] * CLIENTS
    photo = honest_photo()

    def stay(number: int, place: tuple[str, int], ready: threading.Barrier) -> None:
        connection = HTTPConnection(*place, timeout=60)
        while True:
            try:
                connection.request("POST", "/predict", photo)
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException):
                lost[number] += 1
                return
            answered[number] += answer.status == 200
            if answer.getheader("connection") == "close":
                return
            if answered[number] == 1:
                ready.wait(60)
            time.sleep(0.01 * number)

    ready, threads = threading.Barrier(CLIENTS + 1), []
    with start() as (address, _):  # type: ignore[attr-defined]
        place = (str(urlsplit(address).hostname), urlsplit(address).port or 0)
        threads = [threading.Thread(target=stay, args=(number, place, ready)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        ready.wait(60)
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    return sum(answered), sum(lost)


def main(
    artifact: Path | None = None,
    *,
    only: str = "",
    name: str = "t2t_vit_7",
    attackers: int = 16,
    seconds: float = 20,
    ends: int = 10,
    page: bool = True,
) -> None:
    """Measure, and write a page beside this file, or with --no-page print the rows alone."""
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        path = artifact or write_weights(Path(folder), name)
        rows: list[list[str]] = []
        resident: list[float] = []
        spawned = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with server(path, [], 4) as (address, about), spawned as honest:
            for kind, (begin, again) in {"nothing": (b"", b""), **attacks()}.items():
                if only not in kind:
                    continue
                for source in (OTHER, ATTACKER) if begin + again else (OTHER,):
                    cells = besiege(honest, address, begin, again, attackers, seconds, source)
                    rows.append([kind, "another" if source == OTHER else "the same", *cells])
                    resident.append(measure(address, "process_resident_memory_bytes") / 2**20)
                    print(*rows[-1], f"{resident[-1]:.0f} MiB", sep="; ", file=sys.stderr, flush=True)
        told = [end_with_clients(lambda: server(path, [], 4)) for _ in range(ends)]
    answered, lost = (sum(counts) for counts in zip(*told, strict=True)) if told else (0, 0)
    notes = [
        about,
        f"{attackers} connections of an attacker for {seconds:g} s each; the machine's load before was {load:.1f}",
        f"MiB resident after the first and the last attack, and at most: {resident[0]:.0f}, {resident[-1]:.0f}, "
        f"{max(resident):.0f}",
        f"{ends} ends by SIGTERM with {CLIENTS} kept connections each: {answered:,} requests answered, {lost} lost",
    ]
    table = [
        "| the attacker sends | the honest client's address | its requests | p50, ms | p99, ms | not answered by 200 |",
        "|-|-|-:|-:|-:|-|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if page:
        publish("serve_attack", "An honest client of a server under attack", notes, table)
    else:
        print("\n".join((*notes, *table)))


if __name__ == "__main__":
    cyclopts.run(main)
