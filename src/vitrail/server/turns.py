"""Fair queueing: clients that wait for the same workers get equal shares of them, whoever asks for how much."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Waiting items, handed out by weighted fair queueing.

    Every client has a clock, which moves on by the cost of what it is given; the next is the client
    whose clock would show the least after its item. A newcomer's clock starts at the time that all
    would show had they been served at once, each with an equal share. So who asks for little waits
    for little, and who asks for much is never put off for ever.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, Turns[Item] | _Line[Item]] = {}
        self._clocks: dict[Hashable, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, client: tuple[Hashable, ...], item: Item, cost: float = 1.0) -> None:
        """Let an item wait.

        Args:
            client: Names the asker, such as (address, connection): addresses share equally, and so
                do the connections of each.
            item: What is asked for.
            cost: What the item will take, in any unit.
        """
        name, *rest = client
        if name not in self._lines:
            self._lines[name] = Turns() if rest else _Line()
            # a client that did not ask for a while saves up nothing
            self._clocks[name] = max(self._now, self._clocks.get(name, 0.0))
        self._lines[name].put(tuple(rest), item, cost)
        self._count += 1

    def take(self) -> Item:
        """Return the next item; at least one must wait."""
        name = self._choose_next()
        cost = self._lines[name].next_cost()
        self._clocks[name] += cost
        self._now += cost / len(self._lines)
        item = self._lines[name].take()
        self._count -= 1
        self._drop_empty(name)
        return item

    def discard(self, client: tuple[Hashable, ...], item: Item) -> None:
        """Let an item wait no more, if it still does."""
        name, *rest = client
        line = self._lines.get(name)
        if line is None:
            return
        before = len(line)
        line.discard(tuple(rest), item)
        self._count -= before - len(line)
        self._drop_empty(name)

    def next_cost(self) -> float:
        """Return the cost of the next item."""
        return self._lines[self._choose_next()].next_cost()

    def _choose_next(self) -> Hashable:
        return min(self._lines, key=lambda name: self._clocks[name] + self._lines[name].next_cost())

    def _drop_empty(self, name: Hashable) -> None:
        """Forget a client that waits for nothing, and all clocks that are not ahead of a newcomer's."""
        if self._lines[name]:
            return
        del self._lines[name]
        self._clocks = {
            other: clock
            for other, clock in self._clocks.items()
            if other in self._lines or clock > self._now
        }


class _Line(Generic[Item]):
    """The queue of one client, first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Item, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, client: tuple[Hashable, ...], item: Item, cost: float) -> None:
        self._waiting.append((item, cost))

    def take(self) -> Item:
        return self._waiting.popleft()[0]

    def discard(self, client: tuple[Hashable, ...], item: Item) -> None:
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] is not item)

    def next_cost(self) -> float:
        return self._waiting[0][1]
