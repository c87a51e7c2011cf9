"""What the benchmarks share: subjects that take turns, and a dated page that says what the numbers depend on."""

from __future__ import annotations

import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

Subject = TypeVar("Subject", bound=Hashable)


def alternate(
    subjects: Mapping[Subject, Callable[[], object]],
    rounds: int,
    *,
    warmups: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Subject, list[float]]:
    """Return the seconds of each subject in each round; they take turns, so that a busy machine slows all alike."""
    seconds: dict[Subject, list[float]] = {subject: [] for subject in subjects}
    order = list(subjects)
    for number in range(-warmups, rounds):
        for subject in order if number % 2 else reversed(order):  # a drift of the machine favours nobody
            synchronise(device)
            started = clock()
            subjects[subject]()
            synchronise(device)
            if number >= 0:
                seconds[subject].append(clock() - started)
    return seconds


def synchronise(device: str) -> None:
    """Wait for what was sent to a GPU."""
    if device != "cpu":
        torch.accelerator.synchronize()


def speed_up(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of how many times longer theirs took."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation; nothing of no value, and the mean alone of one."""
    if not values:
        return ""
    around = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{around}"


def train_command(processes: int, *words: str) -> list[str]:
    """Return what starts a training run on so many processes."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m"]
    return [sys.executable, "-m", *(torchrun if processes > 1 else []), "vitrail", "train", *words]


def processor() -> str:
    """Return the name of the CPU."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def publish(what: str, title: str, notes: Sequence[str], table: Sequence[str], device: str = "cpu") -> None:
    """Print a page and write it beside this file, as <what>_<device>_<yyyy-mm>.md; a CPU's vectors are named."""
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True).strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "pillow", "torchcodec"))
    lines = [
        f"# {title}",
        "",
        f"- `uv run python {shlex.join(sys.argv)}`",
        f"- {time.strftime('%Y-%m-%d')}, commit {commit}",
        f"- {processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        *([f"- {gpu}"] if gpu else []),
        f"- Python {platform.python_version()}, {versions}",
        *(f"- {note}" for note in notes),
        "",
        *table,
    ]
    print("\n".join(lines))
    name = re.sub(r"\(.*?\)|CPU|@.*|Processor", "", gpu or f"{processor()} {torch.backends.cpu.get_cpu_capability()}")
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = Path(__file__).with_name(f"{what}_{short}_{time.strftime('%Y-%m')}.md")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
