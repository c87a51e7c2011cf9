"""Seconds spent in each phase of the work, by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up the seconds of named phases.

    A CUDA device works asynchronously: events are put into its queue, and read when it is waited
    for anyway.

    Args:
        device: Device that does the work.
        seconds: Seconds of each phase, which are added to.
    """

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._queued = device.type == "cuda"
        self._seconds = seconds
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time work on the device."""
        if not self._queued:
            with self.waiting(name):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._marks.append((name, begin, end))

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Time what the program itself does or waits for, on the host."""
        started = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - started)

    def read(self) -> None:
        """Add what the device has finished; waits for it."""
        for name, begin, end in self._marks:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1000)
        self._marks.clear()

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
