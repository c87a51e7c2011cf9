"""Watchdog: name the rank that the others wait for, and the line where it hangs, and end all of them."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Self

from torch._C._distributed_c10d import Store
from torch.distributed import DistError

LOOKS = 20
"""Looks at the other ranks within a timeout."""
COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py")
"""Files in which a rank is that waits for the others: a collective call, or the gradients of the
backward pass."""


class Watchdog:
    """Watches, from a thread of each rank, that all of them move on.

    All ranks make the same moves, so the one that has made the fewest is the one that is waited
    for.

    Args:
        store: Key-value store of all ranks, or None where there is one rank and nothing to watch.
        rank: Number of this process.
        world: Number of processes.
        timeout_s: Seconds without a sign of life, after which the ranks are compared and ended.
    """

    def __init__(self, store: Store | None, rank: int, world: int, timeout_s: float) -> None:
        self._store = store
        self._rank, self._world = rank, world
        self._timeout_s = timeout_s
        self._moves, self._doing = 0, "starting"
        self._moved = time.monotonic()
        self._main = threading.get_ident()
        self._over = threading.Event()

    def move(self, doing: str) -> None:
        """Say what this process does from now on."""
        self._moves += 1
        self._doing = doing
        self._moved = time.monotonic()

    def stir(self) -> None:
        """Give a sign of life within a move."""
        self._moved = time.monotonic()

    def __enter__(self) -> Self:
        if self._store is not None:
            self._thread = threading.Thread(
                target=self._watch, args=(self._store.clone(),), daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._store is not None:
            self._thread.join()

    def _watch(self, store: Store) -> None:
        """Report how this rank stands, again and again; once all stand still, say who is waited for, and end."""
        pause_s = self._timeout_s / LOOKS
        keys = [f"vitrail-watchdog-{rank}" for rank in range(self._world)]
        while not self._over.wait(pause_s):
            report = self._report()
            try:
                store.set(keys[self._rank], json.dumps(report))
            except DistError:  # torchrun is gone, and told this process to leave
                return
            # a little longer, in which the others report that they wait too
            if report["still_s"] > self._timeout_s + 2 * pause_s:
                reports = [json.loads(store.get(key)) for key in keys if store.check([key])]
                self._end(reports, pause_s)

    def _report(self) -> dict[str, Any]:
        """Return how this rank stands."""
        return {
            "rank": self._rank,
            "host": platform.node(),
            "pid": os.getpid(),
            "moves": self._moves,
            "doing": self._doing,
            "call": self._call(),
            "still_s": time.monotonic() - self._moved,
            "told": time.time(),
        }

    def _end(self, reports: list[dict[str, Any]], pause_s: float) -> None:
        """End this process; of the ranks that still report, the first says who is waited for."""
        first = min(
            report["rank"] for report in reports if report["told"] > time.time() - 3 * pause_s
        )
        if self._rank == first:
            # not by way of the command line, whose thread is the one that hangs
            sys.stderr.write(
                f"error: {describe(reports, time.time())}; see train.dist_timeout_minutes\n"
            )
            sys.stderr.flush()
        else:
            time.sleep(pause_s)  # until that is written, as the end of any process ends the others
        os._exit(os.EX_SOFTWARE)

    def _call(self) -> str:
        """Return where the main thread is: file, line and function."""
        frames = traceback.extract_stack(sys._current_frames()[self._main])
        return (
            f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}"
            if frames
            else "nowhere"
        )


def describe(reports: list[dict[str, Any]], now: float) -> str:
    """Say which ranks made the fewest moves, and what the others wait in."""
    fewest = min(report["moves"] for report in reports)
    slowest = [report for report in reports if report["moves"] == fewest]
    # of those, the ones in the midst of a collective call wait as well
    behind = [report for report in slowest if not _is_in_collective(report)] or slowest
    described = []
    for report in behind:
        seconds = report["still_s"] + now - report["told"]
        described.append(
            f"process {report['rank']} ({report['host']}, pid {report['pid']}) has been "
            f"{report['doing']} for {seconds:.0f} s, at {report['call']}"
        )
    named = "; ".join(described)
    waiting = [report for report in reports if report not in behind]
    if not waiting:
        return f"no process moves on: {named}"
    return f"{named}; {len(waiting)} wait for it, {waiting[0]['doing']}, at {waiting[0]['call']}"


def _is_in_collective(report: dict[str, Any]) -> bool:
    """Say whether a rank waits for the others in a call of torch."""
    return any(place in report["call"] for place in COLLECTIVES)
