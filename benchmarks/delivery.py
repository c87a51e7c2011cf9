"""What each way to deliver the word block costs: C++ compiled on the user's machine, C++ in a wheel, or numba.

uv run python benchmarks/delivery.py
uv run --with numba python benchmarks/delivery.py  # numba is no dependency: its row is left out without it

The C++ is one source, compiled for this processor and for those that a wheel would carry libraries for. Numba's kernel
is the forward pass alone (word_block_numba.py). Each is compared with the plain body in double precision first.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cyclopts
import torch
from side_by_side import alternate, publish, speed_up
from torch import Tensor

from vitrail.kernels import compiled
from vitrail.kernels.word_block_compiled import NAME, TOLERANCE, run_backward, run_forward
from vitrail.kernels.word_block_plain import Weights, flatten, plain_word_block

HEADS, EPS, GELU = 4, 1e-5, "none"
LAYERS = "PyTorch's layers"
WAYS = {
    "C++, compiled on this machine": "native",
    "C++ of a wheel, x86-64-v4 (AVX-512)": "x86-64-v4",
    "C++ of a wheel, x86-64-v3 (AVX2)": "x86-64-v3",
    "C++ of a wheel, x86-64-v2 (SSE4.2)": "x86-64-v2",
}
NUMBA = "numba"
NEEDS = {"x86-64-v4": {"avx512f", "avx512bw", "avx512vl"}, "x86-64-v3": {"avx2", "fma", "bmi2"}}
FIRST_USE = """
import time, delivery
given = delivery.draw(64)
begun = time.perf_counter()
delivery.use_numba(*given)()
print(time.perf_counter() - begun)
"""


@dataclass
class Way:
    """One way to deliver the block."""

    forward: Callable[[], Tensor]
    train: Callable[[], tuple[Tensor, Tensor]] | None = None
    """Gradients of the words and of all weights."""
    first: str = ""
    """Seconds of the first use on a machine."""
    later: str = ""
    """Seconds until it can be used in a later process."""
    brings: str = ""
    """What has to be installed or downloaded for it."""


def draw(sentences: int) -> tuple[Tensor, list[Tensor]]:
    """Return words and weights of a block of TNT-S."""
    torch.manual_seed(0)
    e, h = 24, 96
    sizes = ((e,), (e,), (2 * e, e), (e, e), (e, e), (e,), (e,), (e,), (h, e), (h,), (e, h), (e,))
    return torch.randn(sentences, 16, e), [0.3 * torch.randn(size) for size in sizes]


def use_layers(words: Tensor, weights: list[Tensor], grad: Tensor) -> Way:
    """Compute by PyTorch."""
    inputs = [one.clone().requires_grad_() for one in (words, *weights)]

    def forward() -> Tensor:
        with torch.inference_mode():
            return plain_word_block(words, None, weights, HEADS, EPS, GELU)

    def train() -> tuple[Tensor, Tensor]:
        out = plain_word_block(inputs[0], None, inputs[1:], HEADS, EPS, GELU)
        grads = torch.autograd.grad(out, inputs, grad)
        return grads[0], flatten(grads[1:])

    return Way(forward, train)


def use_compiled(words: Tensor, weights: list[Tensor], grad: Tensor, march: str, folder: Path) -> Way:
    """Compile the C++ for a processor, and compute by it."""
    path = folder / f"{march}.so"
    flags = [f"-march={march}" if "-march" in flag else flag for flag in compiled.FLAGS]
    begun = time.perf_counter()
    compiled.run_compiler([*compiled.find_compiler(), *flags, str(compiled.source(NAME)), "-o", str(path)])
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    library = ctypes.CDLL(str(path))
    loaded = time.perf_counter() - begun

    def forward() -> Tensor:
        return run_forward(library, words, None, weights, HEADS, EPS, GELU)

    def train() -> tuple[Tensor, Tensor]:
        forward()
        return run_backward(library, grad, words, None, weights, HEADS, EPS, GELU)

    first, brings = (f"{seconds:.1f}", "a compiler") if march == "native" else (f"{loaded:.3f}", f"{size_of(path):.2f}")
    return Way(forward, train, first, f"{loaded:.3f}", brings)


def use_numba(words: Tensor, weights: list[Tensor]) -> Callable[[], Tensor]:
    """Return what computes by numba's kernel."""
    import numba  # pyright: ignore[reportMissingImports] # no dependency
    import numpy as np
    from word_block_numba import word_block

    numba.set_num_threads(torch.get_num_threads())
    w, out = Weights(*weights), torch.empty_like(words)
    arrays = (
        words,
        torch.stack([w.norm1_weight, w.norm1_bias]),
        torch.cat([w.qk, w.v]),
        w.proj,
        w.proj_bias,
        torch.stack([w.norm2_weight, w.norm2_bias]),
        *(w.fc1, w.fc1_bias, w.fc2, w.fc2_bias),
    )
    given: list[Any] = [*(one.numpy() for one in arrays), HEADS, np.float32(EPS), out.numpy()]

    def forward() -> Tensor:
        word_block(*given)
        return out

    return forward


def measure_numba(words: Tensor, weights: list[Tensor], folder: Path) -> Way:
    """Compute by numba, and measure its first uses in processes of their own."""
    seconds = []
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "numba"), "PYTHONPATH": str(Path(__file__).parent)}
    for _ in range(2):
        command = [sys.executable, "-c", FIRST_USE]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        seconds.append(float(done.stdout))
    brings = sum(size_installed(name) for name in ("numba", "llvmlite"))
    return Way(use_numba(words, weights), None, f"{seconds[0]:.1f}", f"{seconds[1]:.3f}", f"{brings:.0f}")


def size_of(library: Path) -> float:
    """Return the megabytes that a library adds to a wheel, stripped where there is a program for it, and compressed."""
    small = library.with_suffix(".stripped")
    shutil.copy(library, small)
    if strip := shutil.which("strip"):
        subprocess.run([strip, str(small)], check=True)
    archive = library.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(small, library.name)
    return archive.stat().st_size / 1e6


def size_of_compiler() -> float:
    """Return the megabytes of the folder that the compiler proper is in."""
    words = [*compiled.find_compiler(), "-print-prog-name=cc1plus"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    files = Path(done.stdout.strip()).parent.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def size_installed(name: str) -> float:
    """Return the megabytes of an installed package."""
    files = [Path(str(file.locate())) for file in distribution(name).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def describe_needs(folder: Path) -> str:
    """Return the newest versions of system libraries that the libraries ask for, which a wheel's name must promise."""
    objdump = shutil.which("objdump")
    if objdump is None:
        return "unknown without objdump"
    names = set()
    for library in folder.glob("*.so"):
        done = subprocess.run([objdump, "-T", str(library)], check=True, capture_output=True, text=True)
        names |= set(re.findall(r"\((GLIBC|GLIBCXX|CXXABI|GOMP|OMP)_([0-9.]+)\)", done.stdout))
    newest: dict[str, str] = {}
    for name, number in sorted(names, key=lambda one: [int(part) for part in one[1].split(".")]):
        newest[name] = number
    return ", ".join(f"{name} {number}" for name, number in sorted(newest.items()))


def check(name: str, way: Way, reference: Way) -> str:
    """Return the largest difference from the plain body in double precision, as a share of its largest number."""
    pairs = [(way.forward(), reference.forward())]
    if way.train is not None and reference.train is not None:
        pairs += zip(way.train(), reference.train(), strict=True)
    worst = max(float((found - right).abs().max() / right.abs().max()) for found, right in pairs)
    assert worst < TOLERANCE, f"{name} computes wrong numbers: {worst}"
    return f"{worst:.0e}"


def count_openmps() -> int:
    """Return how many OpenMP libraries this process has loaded, each with threads of its own."""
    return len(set(re.findall(r"\S*/lib[gi]?omp\S*", Path("/proc/self/maps").read_text())))


def tabulate(ways: dict[str, Way], right: Way, rounds: int) -> list[str]:
    """Return a row for each way."""
    differences = {name: check(name, way, right) for name, way in ways.items()}
    forward = alternate({name: way.forward for name, way in ways.items()}, rounds, warmups=3)
    trained = {name: way.train for name, way in ways.items() if way.train is not None}
    training = alternate(trained, rounds, warmups=3)
    rows = []
    for name, way in ways.items():
        cells = [name]
        for seconds in (forward, training):
            has = name in seconds
            cells.append(f"{1000 * statistics.median(seconds[name]):.2f}" if has else "")
            cells.append(f"{speed_up(seconds[name], seconds[LAYERS]):.2f}" if has else "")
        rows.append(" | ".join(["", *cells, differences[name], way.first, way.later, way.brings, ""]).strip())
    return rows


def main(batch_size: int = 8, rounds: int = 25) -> None:
    """Measure, and write a page beside this file."""
    sentences = 196 * batch_size
    words, weights = draw(sentences)
    grad = torch.randn_like(words)
    flags = set(compiled.describe_processor().split())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = {LAYERS: use_layers(words, weights, grad)}
        for way, march in WAYS.items():
            if NEEDS.get(march, set()) <= flags:
                ways[way] = use_compiled(words, weights, grad, march, folder)
        openmps = count_openmps()
        notes = [
            f"the words of a block of TNT-S in float32, batch of {batch_size}, {sentences:,} sentences",
            f"medians of {rounds} alternating rounds; training is forward and backward",
            "difference: the largest of outputs and gradients from the plain body in double precision, by its size",
            "all levels of x86-64 run on this processor: AVX2's row is AVX2's code on it, beside layers that use all "
            "of it; processors with no more than SSE4.2 are left to PyTorch's layers",
            f"MB: compressed in a wheel; on the disk for numba, with llvmlite; compilers take {size_of_compiler():.0f}",
            f"a wheel's libraries need {describe_needs(folder)}; by ctypes, they serve every Python and torch",
        ]
        if find_spec("numba") is not None:
            ways[NUMBA] = measure_numba(words, weights, folder)
            ways[NUMBA].forward()
            about = metadata("numba")
            needs = [line.partition(";")[0] for line in about.get_all("Requires-Dist") or ()]
            notes.append(
                f"numba {about['Version']} for Python {about['Requires-Python']}, with {' and '.join(needs)}; "
                f"with it the process has {count_openmps()} OpenMP libraries, without it {openmps}; "
                "it was there by `uv run --with numba`"
            )
        exact = use_layers(words.double(), [one.double() for one in weights], grad.double())
        table = [
            "| | inference, ms | speed-up | training, ms | speed-up | difference | first use, s | later, s | MB |",
            "|-|-:|-:|-:|-:|-:|-:|-:|-:|",
            *tabulate(ways, exact, rounds),
        ]
    publish("delivery", "Ways to deliver the word block", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
