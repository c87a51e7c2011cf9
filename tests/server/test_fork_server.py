"""Processes for work: what the fork server answers late is not taken for the answer to something else."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator

import pytest

from support.forked import is_alive, wait_until
from vitrail.server import fork_server
from vitrail.server.fork_server import ForkServer, ForkServerGone, WorkerLost


def work(data: bytearray) -> tuple[bytes, bytes]:
    if data == b"sleep":
        time.sleep(60)
    return b"p", str(os.getpid()).encode()


@pytest.fixture
def slow() -> Iterator[ForkServer]:
    made = ForkServer(work, lambda: time.sleep(1.0))
    yield made
    made.close()


def test_a_late_answer_is_not_that_to_the_next_order(slow: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fork_server, "ORDER_TIMEOUT_S", 0.1)
        for _ in range(2):
            with pytest.raises(ForkServerGone):
                slow.start_worker(0)
    worker = slow.start_worker(0)
    _, pid, _ = worker.run(b"", processor_s=10, wall_s=10, is_wanted=lambda: True)
    with pytest.raises(WorkerLost) as lost:
        worker.run(b"sleep", processor_s=0.1, wall_s=0.2, is_wanted=lambda: True)
    assert lost.value.is_late
    wait_until(lambda: not is_alive(int(pid)))  # it was ended, and not another in its place


def open_files() -> set[str]:
    return {*os.listdir("/proc/self/fd")}


def test_a_worker_whose_end_nobody_confirms_leaves_no_file_open(slow: ForkServer) -> None:
    before = open_files()
    worker = slow.start_worker(0)
    pid = int(worker.run(b"", processor_s=10, wall_s=10, is_wanted=lambda: True)[1])
    os.kill(slow._pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ForkServerGone):
        worker.run(b"", processor_s=10, wall_s=10, is_wanted=lambda: True)
    assert open_files() == before
    with pytest.raises(ForkServerGone):
        slow.start_worker(0)
    assert open_files() == before


def test_a_worker_cannot_be_made_where_no_more_files_may_be_open(slow: ForkServer) -> None:
    slow.start_worker(0).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, spare = open_files(), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 8, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        for room in (0, 2):  # for nothing, and for the sockets alone
            for _ in range(room):
                os.close(spare.pop())
            with pytest.raises(ForkServerGone, match="Too many open files"):
                slow.start_worker(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in spare:
            os.close(file)
    assert open_files() == before
    slow.start_worker(0).close()
