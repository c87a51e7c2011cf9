"""Check whether a machine is fit to train on: versions, devices, memory, disk and network, each with a fix."""

from __future__ import annotations

import io
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from vitrail.data.loader import count_local_processes, count_usable_cores, find_crowding
from vitrail.distributed.processes import all_reduce_seconds, choose_precision, processes
from vitrail.errors import command, tell_count
from vitrail.images.decoding import decode, decoder_name
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.kernels.word_block_compiled import NAME

SHARED_GB = 1.0
"""Shared memory for each training process: eight workers, two batches ahead, 64 images of 224
pixels, and air."""
DISK_MB_S = 50.0
"""Speed of writing from which on saves do not hold up a run."""
DISK_FREE_GB = 5.0
"""Free space from which on a run has room for its saves."""
WRITTEN_MB = 128
"""Size of the file that the speed of writing is measured with."""
COLLECTIVE_S = 10.0
"""Seconds that the network is measured for at most."""
OPEN_FILES = 1024
"""Open files that loader processes need."""


@dataclass(frozen=True)
class Check:
    """One part of the machine, what was found, and how to mend it."""

    name: str
    found: str
    fix: str = ""
    """How to mend it; empty where it is good."""


def examine(folder: Path) -> list[Check]:
    """Look at this machine, and at the folder that runs are written to; a few seconds, or ten under torchrun."""
    with processes("float32", "auto") as accelerator:
        return [
            _versions(),
            _device(accelerator),
            _cores(accelerator),
            _shared_memory(),
            _decoder(),
            _kernels(accelerator),
            _open_files(),
            _disk(folder),
            _collective(accelerator),
        ]


def _versions() -> Check:
    names = ("vitrail", "torch", "torchvision", "timm", "accelerate", "pillow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return Check("versions", f"Python {platform.python_version()}, {versions}")


def _device(accelerator: Accelerator) -> Check:
    if accelerator.device.type == "cuda":
        card = torch.cuda.get_device_properties(accelerator.device)
        count, fast = torch.cuda.device_count(), choose_precision("mixed", "auto")
        return Check(
            "device", f"{count} x {card.name}, {card.total_memory / 2**30:.0f} GiB, fast in {fast}"
        )
    if accelerator.device.type == "cpu":
        fix = ""
        if shutil.which("nvidia-smi") is not None:
            fix = "torch sees no GPU but nvidia-smi is there; install a torch built for its CUDA version"
        return Check("device", "CPU only", fix)
    return Check("device", accelerator.device.type)


def _cores(accelerator: Accelerator) -> Check:
    cores = count_usable_cores()
    threads = torch.get_num_threads()
    ranks = count_local_processes()
    on_cpu = accelerator.device.type == "cpu"
    usable = f"{cores} usable, {tell_count(threads, 'thread')} a process"
    crowd, advice = find_crowding(ranks, on_cpu)
    if crowd:
        return Check("cores", f"{usable}, {crowd}", advice)
    fix = ""
    if on_cpu and threads * ranks < cores:
        busy = f"{tell_count(ranks, 'process', 'processes')} of {tell_count(threads, 'thread')}"
        fix = f"{busy} leave cores idle; set OMP_NUM_THREADS={cores // ranks}"
    return Check("cores", usable, fix)


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("shared memory", "no /dev/shm on this system")
    free = shutil.disk_usage(path).free / 2**30
    fix = ""
    if free < SHARED_GB * count_local_processes():
        fix = "loader processes will die of a bus error; start the container with --shm-size=8g, or set data.workers=0"
    return Check("shared memory", f"{free:.1f} GiB free in /dev/shm", fix)


def _decoder() -> Check:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    data = buffer.getvalue()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.5:
        decode(data)
        count += 1
    speed = count / (time.perf_counter() - started)
    fix = ""
    if decoder_name() != "torchcodec":
        fix = "a third slower than torchcodec; pip install 'vitrail[torchcodec]'"
    return Check(
        "decoder", f"{decoder_name()}, {speed:,.0f} images of 500 x 375 a second on one core", fix
    )


def _kernels(accelerator: Accelerator) -> Check:
    reasons: list[str] = []
    prepare_kernels((NAME,), accelerator.device.type, reasons.append)
    return Check("kernels", describe_kernels(), "".join(reasons))


def _open_files() -> Check:
    try:
        import resource
    except ImportError:  # Windows
        return Check("open files", "no limit on this system")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "unlimited")
    fix = "loader processes need more; type ulimit -n 65536" if soft < OPEN_FILES else ""
    return Check("open files", f"{soft:,}", fix)


def _disk(folder: Path) -> Check:
    name = f"disk of {folder}"
    block = os.urandom(2**20)
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free / 2**30
        with tempfile.TemporaryFile(dir=existing) as file:
            started = time.perf_counter()
            for _ in range(WRITTEN_MB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = WRITTEN_MB / (time.perf_counter() - started)
    except OSError as error:
        return Check(
            name, f"cannot be written ({error.strerror})", "choose another with output.root=FOLDER"
        )
    fix = ""
    if speed < DISK_MB_S:
        fix = "saves will take long; choose a local disk with output.root, or raise output.save_every_minutes"
    elif free < DISK_FREE_GB:
        fix = "free space, or choose another with output.root=FOLDER"
    return Check(name, f"{speed:,.0f} MB/s written, {free:,.0f} GiB free", fix)


def _collective(accelerator: Accelerator) -> Check:
    if accelerator.num_processes == 1:
        return Check("network", f"one process; to test many: {command('doctor', processes=2)}")
    numbers = 2**22
    seconds = all_reduce_seconds(accelerator, numbers, COLLECTIVE_S)
    world = accelerator.num_processes
    # what a ring sends and receives for each number
    speed = 4 * numbers * 2 * (world - 1) / world / seconds / 1e9
    return Check(
        "network",
        f"{world} processes, all-reduce of 16 MiB in {1000 * seconds:.1f} ms, {speed:.2f} GB/s "
        "each",
    )
