"""Processes that agree on a name, with what ended ones left in the store."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from vitrail.distributed.rendezvous import ROUND, announce_start, answer_start, join
from vitrail.errors import LostProcess


def store() -> TCPStore:
    return TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=5))


def test_each_start_agrees_on_a_new_name_whoever_comes_first() -> None:
    server = store()
    names = set()
    for _ in range(3):  # the second and third find what the ones before have left
        with ThreadPoolExecutor(3) as threads:
            others = [threads.submit(answer_start, server.clone(), rank, 5.0) for rank in (1, 2)]
            first = threads.submit(announce_start, server.clone(), 3, 5.0)
            found = {first.result(), *(other.result() for other in others)}
        assert len(found) == 1
        names |= found
    assert len(names) == 3


def test_who_does_not_come_is_named() -> None:
    server = store()
    with pytest.raises(LostProcess, match=r"^process 1, 2 of 3 did not start within 0\.005 minutes; look at its own"):
        announce_start(server, 3, 0.3)
    server.set(ROUND, "of a process that has ended")
    with pytest.raises(LostProcess, match=r"^process 0 did not start within 0\.005 minutes"):
        answer_start(server, 1, 0.3)


@pytest.mark.thorough
@pytest.mark.parametrize("of_torchrun", [True, False])
def test_a_torchrun_that_is_gone_is_told_in_time(monkeypatch: pytest.MonkeyPatch, of_torchrun: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(of_torchrun))
    who = "torchrun" if of_torchrun else "another process of the run"
    begun = time.monotonic()
    with pytest.raises(LostProcess, match=rf"^{who} did not answer at 127\.0\.0\.1:{port} within 1 s; it has ended"):
        join(torch.device("cpu"), 600.0, 1.0)
    assert time.monotonic() - begun < 30
