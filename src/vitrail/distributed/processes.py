"""Join the processes of a run through Accelerate, and let them share, gather and sum."""

from __future__ import annotations

import atexit
import os
import statistics
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._C._distributed_c10d import Store

from vitrail.choices import Device, Precision
from vitrail.devices import keep_freed_memory, pick_device
from vitrail.distributed.launch import understand_launch
from vitrail.distributed.rendezvous import join
from vitrail.errors import ConfigError, LostProcess

_AT_WORK = threading.Lock()
"""Held by the thread that has joined the processes: Accelerate and torch have one state for all
threads."""


@contextmanager
def processes(
    precision: Precision,
    device: Device,
    timeout_minutes: float = 10.0,
    meet_minutes: float = 10.0,
) -> Iterator[Accelerator]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        precision: Precision of matrix products.
        device: auto takes an accelerator where there is one.
        timeout_minutes: How long a process waits for the others in a collective operation.
        meet_minutes: How long it waits for them to start.

    Raises:
        ConfigError: float16 without CUDA, processes on a device that has no way to join them, or
            another thread of this process that is at work.
        LostProcess: Another process has ended.
    """
    if precision == "float16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError(
            "train.precision is float16, which needs a CUDA device; use bfloat16 or float32 here"
        )
    if not _AT_WORK.acquire(blocking=False):
        raise ConfigError(
            "another thread of this process trains or evaluates, and both would change one state "
            "of torch; wait for its end, or begin this in a process of its own"
        )
    try:
        with _joined(precision, device, timeout_minutes, meet_minutes) as accelerator:
            yield accelerator
    finally:
        _AT_WORK.release()


@contextmanager
def _joined(
    precision: Precision, device: Device, timeout_minutes: float, meet_minutes: float
) -> Iterator[Accelerator]:
    """Join the processes that torchrun started, or be the only one, in the one thread that may."""
    understand_launch(os.environ, "")
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    try:
        patience = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
        target = pick_device(device)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and target.type in ("cpu", "cuda"):
            join(target, 60 * timeout_minutes, 60 * meet_minutes)
        # Accelerate joins processes on a CPU only where it is told that it is one
        on_cpu = target.type == "cpu"
        accelerator = Accelerator(
            mixed_precision=names[precision], cpu=on_cpu, kwargs_handlers=[patience]
        )
        if accelerator.num_processes != started:
            raise ConfigError(
                f"torchrun started {started} processes, which cannot work together on "
                f"{accelerator.device.type}; start one, or add train.device=cpu"
            )
        if accelerator.num_processes > 1:
            # said of parameters with a dimension of one, and without effect
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            atexit.unregister(leave_processes)
            atexit.register(leave_processes)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        yield accelerator
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise LostProcess(
            f"lost the other processes ({reason}); the first of them that ended says why, or was "
            "killed, as a system does that is short of memory"
        ) from error
    finally:
        # Accelerate keeps these for the life of the process; a second run may want another
        # precision. The connections
        # stay, as torchrun's store joins the same processes only once.
        AcceleratorState._reset_state(reset_partial_state=True)


def leave_processes() -> None:
    """Close the connections to the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_precision(wanted: str, device: Device) -> Precision:
    """Return the precision that `train.precision` means on this device."""
    if wanted == "O0":
        return "float32"
    if wanted in ("mixed", "O1", "O2", "O3"):
        old_card = pick_device(device).type == "cuda" and not torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        return "float16" if old_card else "bfloat16"
    return cast(Precision, wanted)


def keep_compiled_code() -> str:
    """Let torch.compile keep what it compiles where a restart does not delete it, and return the folder."""
    return os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(Path("~/.cache/vitrail/inductor").expanduser())
    )


def sum_over_processes(accelerator: Accelerator, *tensors: Tensor) -> list[Tensor]:
    """Return the sums of each tensor over all processes. Collective."""
    if accelerator.num_processes == 1:
        return list(tensors)
    return [accelerator.reduce(tensor.clone(), reduction="sum") for tensor in tensors]  # pyright: ignore[reportReturnType]


def share(accelerator: Accelerator, value: Any) -> Any:
    """Broadcast the first process's value to all processes. Collective."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def send_to_all(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    """Give tensors the values that they have in the first process, in place. Collective."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def gather_texts(accelerator: Accelerator, texts: list[Any]) -> list[Any]:
    """Return the lists of all processes, joined. Collective."""
    if accelerator.num_processes == 1:
        return texts
    gathered: list[list[Any]] = [[] for _ in range(accelerator.num_processes)]
    dist.all_gather_object(gathered, texts)
    return list(chain.from_iterable(gathered))


def gather_to_first(accelerator: Accelerator, value: Any) -> list[Any] | None:
    """Return the values of all processes in the first one, None in the others. Collective."""
    if accelerator.num_processes == 1:
        return [value]
    gathered = [None] * accelerator.num_processes if accelerator.is_main_process else None
    dist.gather_object(value, gathered)
    return gathered


def shared_store(accelerator: Accelerator) -> Store | None:
    """Return the key-value store that the processes met in; None where there is one process."""
    return dist.distributed_c10d._get_default_store() if accelerator.num_processes > 1 else None


def any_process(accelerator: Accelerator, flag: Tensor) -> Tensor:
    """Return whether a boolean () is true in any process, on the device and without waiting for it. Collective."""
    if accelerator.num_processes == 1:
        return flag
    votes = flag.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return votes > 0


def all_reduce_seconds(accelerator: Accelerator, numbers: int, budget_s: float) -> float:
    """Return the median time to sum so many float32 over all processes, measured for at most `budget_s`."""
    values = torch.ones(numbers, device=accelerator.device)
    taken: list[float] = []
    for _ in range(50):
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        dist.all_reduce(values)
        values[:1].tolist()  # waits for the device
        taken.append(time.perf_counter() - started)
        if share(accelerator, sum(taken) > budget_s):
            break
    return statistics.median(taken)
