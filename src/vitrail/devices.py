"""Devices and precision: the accelerator or the CPU, autocast, the memory there is, and what glibc keeps of it."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from vitrail.choices import Device, Precision
from vitrail.errors import ConfigError, shorten

# numbers of mallopt's parameters, from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: Device) -> torch.device:
    """Return the accelerator, where there is one and the setting is auto; else the CPU."""
    if device == "cpu":
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def read_device(device: str | torch.device) -> torch.device:
    """Return a device of PyTorch by its name, such as cuda:1, where tensors can be put on it.

    Raises:
        ConfigError: There is none of that name here.
    """
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError, UnicodeError) as error:
        here = ["cpu"]
        if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
            here += [
                f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())
            ]
        raise ConfigError(
            f"device is {shorten(str(device))}; it must be one of {', '.join(here)}"
        ) from error
    return target


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def cpu_has_bfloat16() -> bool:
    """Say whether this processor has instructions for bfloat16, without which it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(has and name.endswith("bf16") for name, has in capabilities.items())


def keep_freed_memory() -> None:
    """Let the C library reuse the large blocks that torch frees, for this process.

    glibc gives each back to the system and then pays for its pages anew, in every step and for
    every batch.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def count_memory(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the bytes of memory that this process may take: the machine's, or fewer in a container or a job.

    Args:
        groups: Where Linux shows its control groups, of version 1 or 2.
        own: File with the groups of this process.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, name = groups, "memory.max"
            elif controllers == "memory":
                top, name = groups / "memory", "memory.limit_in_bytes"
            else:
                continue
            # each group above limits it too; a container may see its own as the top one, whatever
            # its path outside
            inner = top / path.lstrip("/")
            for group in (inner, *inner.parents):
                with suppress(OSError, ValueError):  # not there, or "max"
                    if group.is_relative_to(top):
                        memory = min(memory, int((group / name).read_text()))
    return memory
