"""Processes for work: what the nursery answers late is not taken for the answer to something else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from support.forked import is_alive, wait_until
from vitrail.server import nursery
from vitrail.server.nursery import Nursery, NurseryGone, WorkerLost


def work(data: bytearray) -> tuple[bytes, bytes]:
    if data == b"sleep":
        time.sleep(60)
    return b"p", str(os.getpid()).encode()


@pytest.fixture
def slow() -> Iterator[Nursery]:
    made = Nursery(work, lambda: time.sleep(1.0))
    yield made
    made.close()


def test_a_late_answer_is_not_that_to_the_next_order(slow: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(nursery, "PATIENCE_S", 0.1)
        for _ in range(2):
            with pytest.raises(NurseryGone):
                slow.make(0)
    worker = slow.make(0)
    _, pid, _ = worker.ask(b"", processor_s=10, wall_s=10, is_wanted=lambda: True)
    with pytest.raises(WorkerLost) as lost:
        worker.ask(b"sleep", processor_s=0.1, wall_s=0.2, is_wanted=lambda: True)
    assert lost.value.is_late
    wait_until(lambda: not is_alive(int(pid)))  # it was ended, and not another in its place
