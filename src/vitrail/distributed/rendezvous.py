"""Rendezvous: the processes of a run find each other, again after each restart by torchrun."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vitrail.errors import LostProcess

ROUND = "vitrail/round"
"""Key of the name of the latest start."""
LOOK_S = 0.05
"""Seconds between two looks into the store."""
CONNECT_S = 60.0
"""Seconds to connect to torchrun's store, which is there before a process is started: one that is
silent is gone."""
PARENT_DEATH_SIGNAL = 1
"""Option PR_SET_PDEATHSIG of Linux's prctl."""


def join(device: torch.device, timeout_s: float, meet_s: float) -> None:
    """Connect the processes that torchrun started, unless they are connected.

    torchrun keeps one store over its restarts, and its agents count these apart
    (https://github.com/pytorch/pytorch/issues/135712), so a process may find the addresses of some
    that have ended. Here each start writes below a name of its own, once all processes have agreed
    on it.

    Args:
        device: Device that this process computes on.
        timeout_s: Seconds that a collective operation may take later.
        meet_s: Seconds that the others may take to start.

    Raises:
        LostProcess: Some did not come in time, or torchrun is gone.
    """
    if dist.is_initialized():
        return
    end_with_torchrun()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=timeout_s)
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    connect_s = min(meet_s, CONNECT_S) if of_torchrun else meet_s
    try:
        store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=connect_s)))
    except dist.DistError as error:
        who = "torchrun" if of_torchrun else "another process of the run"
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LostProcess(
            f"{who} did not answer at {place} within {connect_s:.0f} s; it has ended or was "
            "killed, or no network leads there; look at its own output"
        ) from error
    store.set_timeout(timedelta(seconds=meet_s))
    name = announce_start(store, world, meet_s) if rank == 0 else answer_start(store, rank, meet_s)
    store.set_timeout(timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(name, store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


def end_with_torchrun() -> None:
    """Let the system send SIGTERM to this process where its torchrun is killed, so that it saves and leaves."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGTERM))


def announce_start(store: Store, world: int, timeout_s: float) -> str:
    """Name this start, as the first process does, and wait until all others have answered to the name."""
    name = uuid.uuid4().hex
    deadline = time.monotonic() + timeout_s
    store.set(ROUND, name)
    while absent := [rank for rank in range(1, world) if not store.check([f"{name}/here/{rank}"])]:
        if time.monotonic() > deadline:
            raise LostProcess(
                f"process {', '.join(map(str, absent))} of {world} did not start within "
                f"{timeout_s / 60:g} minutes; look at its own output"
            )
        time.sleep(LOOK_S)
    for rank in range(1, world):
        nonce = store.get(f"{name}/here/{rank}").decode()
        store.set(f"{name}/go/{rank}/{nonce}", "")
    return name


def answer_start(store: Store, rank: int, timeout_s: float) -> str:
    """Answer to each name, as all other processes do, until the first one has heard it; old names get no reply."""
    # by its nonce this process knows that the reply is to itself, and not to one that has ended
    nonce = uuid.uuid4().hex
    deadline = time.monotonic() + timeout_s
    answered = ""
    while True:
        name = store.get(ROUND).decode()
        if name != answered:
            store.set(f"{name}/here/{rank}", nonce)
            answered = name
        if store.check([f"{name}/go/{rank}/{nonce}"]):
            return name
        if time.monotonic() > deadline:
            raise LostProcess(
                f"process 0 did not start within {timeout_s / 60:g} minutes; look at its own output"
            )
        time.sleep(LOOK_S)
