"""Devices and precision: the accelerator or the CPU, autocast, and memory that glibc keeps for reuse."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
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
            here += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
        raise ConfigError(f"device is {shorten(str(device))}; it must be one of {', '.join(here)}") from error
    return target


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def keep_freed_memory() -> None:
    """Let the C library reuse the large blocks that torch frees, for this process.

    glibc gives each back to the system and then pays for its pages anew, in every step and for every batch.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
