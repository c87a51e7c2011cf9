"""Dynamic batching: single requests are grouped up to a size and a maximum wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from vitrail.server.turns import Turns

Item = TypeVar("Item")
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class WorkFailed(Exception):
    """A batch could not be worked on; the log has the reason."""


class Batcher(Generic[Item, Answer]):
    """Gathers a batch while the one before is worked on, so that a busy worker always finds a full one.

    Args:
        work: Answers a batch, in its order.
        worker: Runs `work` outside the event loop.
        most: Largest batch.
        wait_s: Seconds that the first of a batch waits for others.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer]],
        worker: Executor,
        *,
        most: int,
        wait_s: float,
    ) -> None:
        self._work = work
        self._worker = worker
        self._most = most
        self._wait_s = wait_s
        self._waiting: Turns[tuple[Item, asyncio.Future[Answer]]] = Turns()
        self._came = asyncio.Event()
        self._began: float | None = None
        self.has_failed = False
        """Whether the last batch failed."""

    async def ask(self, item: Item, client: tuple[Hashable, ...] = ("",)) -> Answer:
        """Wait for one answer; an item whose asker stops waiting is left out, if it is not too late.

        Args:
            item: The item to answer.
            client: Names the asker, as for `Turns`.

        Raises:
            WorkFailed: The batch of the item failed.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = (item, answer)
        self._waiting.put(client, waiting)
        self._came.set()
        try:
            return await answer
        finally:
            self._waiting.discard(client, waiting)

    @property
    def busy_s(self) -> float:
        """How long the present batch has been worked on."""
        if self._began is None:
            return 0.0
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Work on batches until cancelled."""
        while True:
            batch = await self._gather()
            batch = [(item, answer) for item, answer in batch if not answer.done()]
            if not batch:
                continue
            self._began = time.monotonic()
            try:
                await self._answer(batch)
            finally:
                self._began = None

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        loop = asyncio.get_running_loop()
        items = [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._worker, self._work, items)
            answers = [(answer, result) for (_, answer), result in zip(batch, results, strict=True)]
        except Exception:
            log.exception("a batch of %d failed", len(batch))
            self.has_failed = True
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(WorkFailed())
            return
        self.has_failed = False
        for answer, result in answers:
            if not answer.done():
                answer.set_result(result)

    async def _gather(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Wait for the first of a batch, and then a little for others."""
        while not self._waiting:
            await self._wait_for_more()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while len(self._waiting) < self._most:
                    await self._wait_for_more()
        count = min(self._most, len(self._waiting))
        return [self._waiting.take() for _ in range(count)]

    async def _wait_for_more(self) -> None:
        self._came.clear()
        await self._came.wait()
