"""Devices, processes and precision: the one file that knows Accelerate."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from vitrail.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def processes(precision: Precision, device: Literal["auto", "cpu"]) -> Iterator[Accelerator]:
    """Join the processes that torchrun started, or be the only one, and leave them at the end.

    Raises:
        ConfigError: float16 without CUDA.
    """
    if precision == "float16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("train.precision is float16, which needs a CUDA device; use bfloat16 or float32 here")
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    try:
        accelerator = Accelerator(mixed_precision=names[precision], cpu=device == "cpu")
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        yield accelerator
    finally:
        # Accelerate keeps these for the life of the process; a second run may want another precision
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def keep_freed_memory() -> None:
    """Let the C library reuse the large blocks that torch frees, for this process.

    glibc gives each back to the system and then pays for its pages anew, in every step and for every batch.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pick_device(device: Literal["auto", "cpu"]) -> torch.device:
    """Return the accelerator, where there is one and it is wanted."""
    found = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else None
    return found or torch.device("cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in `precision`."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, _DTYPES[precision])


def sum_over_processes(accelerator: Accelerator, *tensors: Tensor) -> list[Tensor]:
    """Return the sums of each tensor over all processes."""
    if accelerator.num_processes == 1:
        return list(tensors)
    return [accelerator.reduce(tensor.clone(), reduction="sum") for tensor in tensors]  # pyright: ignore[reportReturnType]


def share(accelerator: Accelerator, value: Any) -> Any:
    """Return the first process's value in every process."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather_texts(accelerator: Accelerator, texts: list[Any]) -> list[Any]:
    """Return the lists of all processes, joined."""
    if accelerator.num_processes == 1:
        return texts
    gathered: list[list[Any]] = [[] for _ in range(accelerator.num_processes)]
    torch.distributed.all_gather_object(gathered, texts)
    return [text for texts in gathered for text in texts]
