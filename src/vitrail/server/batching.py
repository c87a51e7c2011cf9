"""What many ask for one by one, worked on together: at most so many at once, and none waits long for others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from vitrail.server.turns import Turns

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class WorkFailed(Exception):
    """A batch could not be worked on; the log has the reason."""


class Batcher(Generic[Asked, Answer]):
    """Gathers while the batch before is worked on, so that a busy worker always finds a full one.

    Args:
        work: Answers a batch, in its order.
        worker: Where, outside the event loop.
        most: In a batch.
        wait_s: For others, after the first of a batch.
    """

    def __init__(
        self, work: Callable[[list[Asked]], Sequence[Answer]], worker: Executor, *, most: int, wait_s: float
    ) -> None:
        self._work, self._worker, self._most, self._wait_s = work, worker, most, wait_s
        self._waiting: Turns[tuple[Asked, asyncio.Future[Answer]]] = Turns()
        self._came = asyncio.Event()
        self._began: float | None = None
        self.has_failed = False
        """Whether the last batch did."""

    async def ask(self, asked: Asked, who: tuple[Hashable, ...] = ("",)) -> Answer:
        """Wait for one answer; whoever stops waiting is left out, if it is not too late.

        Args:
            asked: What is to be answered.
            who: Asks, as for `Turns`.

        Raises:
            WorkFailed: Its batch did.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = (asked, answer)
        self._waiting.put(who, waiting)
        self._came.set()
        try:
            return await answer
        finally:
            self._waiting.discard(who, waiting)

    @property
    def busy_s(self) -> float:
        """How long the present batch has been worked on."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    async def run(self) -> None:
        """Work on batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [(asked, answer) for asked, answer in await self._gather() if not answer.done()]
            if not batch:
                continue
            self._began = time.monotonic()
            try:
                answers = await loop.run_in_executor(self._worker, self._work, [asked for asked, _ in batch])
                found = [(answer, one) for (_, answer), one in zip(batch, answers, strict=True)]
            except Exception:
                log.exception("a batch of %d failed", len(batch))
                self.has_failed = True
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(WorkFailed())
            else:
                self.has_failed = False
                for answer, one in found:
                    if not answer.done():
                        answer.set_result(one)
            finally:
                self._began = None

    async def _gather(self) -> list[tuple[Asked, asyncio.Future[Answer]]]:
        while not self._waiting:
            await self._wait_for_more()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while len(self._waiting) < self._most:
                    await self._wait_for_more()
        return [self._waiting.take() for _ in range(min(self._most, len(self._waiting)))]

    async def _wait_for_more(self) -> None:
        self._came.clear()
        await self._came.wait()
