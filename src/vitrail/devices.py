"""Where a model computes and how precisely, without what training needs to join processes."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: Literal["auto", "cpu"]) -> torch.device:
    """Return the accelerator, where there is one and it is wanted."""
    found = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else None
    return found or torch.device("cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in `precision`."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, DTYPES[precision])


def keep_freed_memory() -> None:
    """Let the C library reuse the large blocks that torch frees, for this process.

    glibc gives each back to the system and then pays for its pages anew, in every step and for every batch.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
