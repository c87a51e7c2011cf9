"""Measure what the server makes of an engine: images a second beside the bare engine's, waiting times, and memory.

    uv run python benchmarks/serve.py [ARTIFACT] [--engine E] [--precision P] [--clients 32] [--requests 10000]

Without an artifact, the weights of MODEL are drawn. Every client sends one JPEG after another, each on a connection
that it keeps. The bare engine gets batches of normalised images, alone in its process, before and after.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import cyclopts
import torch
from PIL import Image
from side_by_side import publish

from vitrail.images.preprocess import Preprocess
from vitrail.images.synthetic import draw_photo
from vitrail.inference.network import open_artifact
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import Record, model_options, provenance, save_model

PHOTOS = 64


def main(
    artifact: Path | None = None,
    *,
    name: str = "twins_svt_small",
    engine: str | None = None,
    precision: str | None = None,
    clients: int = 32,
    max_batch: int = 16,
    requests: int = 10_000,
    bare_s: float = 20,
    bare: bool = False,
) -> None:
    """Measure, and write a page beside this file; `--bare` is for the processes that this one starts."""
    if bare:
        assert artifact is not None
        print(bare_rate(artifact, engine, precision, max_batch, bare_s))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = artifact or write_weights(Path(folder), name)
        wishes = [word for flag, value in (("--engine", engine), ("--precision", precision)) if value
                  for word in (flag, value)]  # fmt: skip
        alone = [sys.executable, __file__, str(path), *wishes, "--bare", "--max-batch", str(max_batch)]
        alone += ["--bare-s", str(bare_s)]

        def measure_alone() -> float:
            return float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout)

        before = measure_alone()
        with server(path, wishes, max_batch) as (address, about):
            load(address, clients, 5 * clients)
            memory = [resident(address)]
            seconds, took = load(address, clients, requests // 2)
            memory.append(resident(address))
            more, took_more = load(address, clients, requests - requests // 2)
            memory.append(resident(address))
            batch = measure(address, "vitrail_batch_images_sum") / measure(address, "vitrail_batch_images_count")
        after = measure_alone()
    seconds, rate, engine_rate = sorted(seconds + more), requests / (took + took_more), statistics.mean((before, after))
    half, rare = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    publish(
        "serve",
        "The server beside its bare engine",
        [about, f"{clients} clients, {requests:,} requests of one JPEG each, batches of {batch:.1f} on average"],
        [
            "| | |", "|-|-:|", f"| bare engine, images/s, before and after | {before:.1f}, {after:.1f} |",
            f"| server, images/s | {rate:.1f} |", f"| share of the bare engine | {100 * rate / engine_rate:.0f} % |",
            f"| p50, p99 of a request, ms | {half:.0f}, {rare:.0f} |",
            f"| MiB resident after warm-up, half and all requests | {', '.join(f'{m:.0f}' for m in memory)} |",
        ],
    )  # fmt: skip


def write_weights(folder: Path, name: str) -> Path:
    """Draw weights; what they answer does not matter here."""
    model, variant = create_model(name), find_variant(name)[1]
    size = model.config.size
    preprocess = Preprocess(size=size, crop=variant.crop, mean=variant.mean, std=variant.std)
    classes = tuple(map(str, range(model.config.num_classes)))
    options = model_options(model)
    record = Record(model=name, options=options, classes=classes, preprocess=preprocess, provenance=provenance())
    save_model(folder / f"{name}.safetensors", model.state_dict(), record)
    return folder / f"{name}.safetensors"


def bare_rate(artifact: Path, engine: str | None, precision: str | None, batch: int, seconds: float) -> float:
    """Return images a second of the engine alone."""
    network = open_artifact(artifact, engine, precision=precision)  # type: ignore[arg-type]
    images = torch.randn(batch, 3, *network.record.preprocess.size)
    network(images)
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        network(images)
        count += batch
    return count / took


@contextmanager
def server(path: Path, wishes: list[str], max_batch: int):
    words = [sys.executable, "-m", "vitrail", "serve", str(path), "--port", "0", "--device", "cpu", *wishes]
    process = subprocess.Popen(
        [*words, "--max-batch", str(max_batch)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        address, _, about = process.stdout.readline().partition(": ")
        yield address, about.split(";")[0]
    finally:
        process.terminate()
        assert process.wait() == 0


def load(address: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Return the seconds of each request, and of all together."""
    photos = [encoded(number) for number in range(PHOTOS)]
    place, left, lock = urlsplit(address), iter(range(requests)), threading.Lock()
    seconds: list[float] = []

    def ask() -> None:
        connection = HTTPConnection(str(place.hostname), place.port, timeout=120)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            began = time.perf_counter()
            connection.request("POST", "/predict", photos[number % PHOTOS])
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200, found
            seconds.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == requests
    return seconds, time.perf_counter() - began


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(number)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(address: str, name: str) -> float:
    place = urlsplit(address)
    connection = HTTPConnection(str(place.hostname), place.port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def resident(address: str) -> float:
    return measure(address, "process_resident_memory_bytes") / 2**20


if __name__ == "__main__":
    cyclopts.run(main)
