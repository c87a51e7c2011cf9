"""Turns of those who wait for the same workers: equal shares of the work, whoever asks for how much of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """What waits, handed out by weighted fair queueing.

    Everyone has a clock, which moves on by the cost of what they are given; the next is whose clock would be the least
    after it. A newcomer's clock starts at the time that all would show had they worked at once, each at an equal share.
    So who asks for little waits for little, and who asks for much is never put off for ever.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, Turns[Item] | _Line[Item]] = {}
        self._clocks: dict[Hashable, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, who: tuple[Hashable, ...], item: Item, cost: float = 1.0) -> None:
        """Let something wait.

        Args:
            who: Asks for it, such as (address, connection): addresses share equally, and so do the connections of each.
            item: What is asked for.
            cost: What it will take, in any unit.
        """
        name, *rest = who
        if name not in self._lines:
            self._lines[name] = Turns() if rest else _Line()
            self._clocks[name] = max(self._now, self._clocks.get(name, 0.0))  # who did not ask saves up nothing
        self._lines[name].put(tuple(rest), item, cost)
        self._count += 1

    def take(self) -> Item:
        """Return what is next; something must wait."""
        name = self._next()
        cost = self._lines[name].next_cost()
        self._clocks[name] += cost
        self._now += cost / len(self._lines)
        item = self._lines[name].take()
        self._count -= 1
        self._forget(name)
        return item

    def discard(self, who: tuple[Hashable, ...], item: Item) -> None:
        """Let something wait no more, if it still does."""
        name, *rest = who
        if (line := self._lines.get(name)) is not None:
            before = len(line)
            line.discard(tuple(rest), item)
            self._count -= before - len(line)
            self._forget(name)

    def next_cost(self) -> float:
        """Return the cost of what is next."""
        return self._lines[self._next()].next_cost()

    def _next(self) -> Hashable:
        return min(self._lines, key=lambda name: self._clocks[name] + self._lines[name].next_cost())

    def _forget(self, name: Hashable) -> None:
        if not self._lines[name]:
            del self._lines[name]
            self._clocks = {one: at for one, at in self._clocks.items() if one in self._lines or at > self._now}


class _Line(Generic[Item]):
    """The queue of one client, first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Item, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, who: tuple[Hashable, ...], item: Item, cost: float) -> None:
        self._waiting.append((item, cost))

    def take(self) -> Item:
        return self._waiting.popleft()[0]

    def discard(self, who: tuple[Hashable, ...], item: Item) -> None:
        self._waiting = deque(one for one in self._waiting if one[0] is not item)

    def next_cost(self) -> float:
        return self._waiting[0][1]
