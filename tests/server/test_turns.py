"""Turns of those who wait: equal shares, whoever asks for how much, and nothing is put off for ever."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from vitrail.server.batching import Batcher
from vitrail.server.turns import Turns


def taken(turns: Turns[str], count: int | None = None) -> str:
    return "".join(turns.take() for _ in range(len(turns) if count is None else count))


def test_addresses_take_turns_and_so_do_the_connections_of_each() -> None:
    turns: Turns[str] = Turns()
    for item in "aaaa":
        turns.put(("one", 1), item)
    for item in "bb":
        turns.put(("one", 2), item)
    for item in "xxx":
        turns.put(("other", 3), item)
    order = taken(turns)
    assert sorted(order) == sorted("aaaabbxxx")
    assert order[:6].count("x") == 3  # half of the turns, though the other address has more connections
    assert order[:5].count("b") >= 1
    assert len(turns) == 0


def test_who_asks_for_little_waits_for_little_and_who_asks_for_much_is_not_put_off() -> None:
    turns: Turns[str] = Turns()
    turns.put(("large",), "L", 10)
    turns.put(("large",), "L", 10)
    turns.put(("small",), "s", 1)
    assert taken(turns, 1) == "s"
    order = ""
    for number in range(30):  # a stream of newcomers who ask for little
        turns.put((f"new {number}",), "s", 1)
        order += taken(turns, 1)
    assert order.count("L") == 1
    assert "L" in order[8:22]


def test_a_newcomer_who_asks_for_little_does_not_wait_for_all_who_ask_for_much() -> None:
    turns: Turns[str] = Turns()
    for number in range(160):
        turns.put(("address", number % 16), "L", 40)
    for _ in range(5):
        assert taken(turns, 3) == "LLL"
        turns.put(("address", "small"), "s", 1)
        assert taken(turns, 1) == "s"


def test_who_did_not_ask_saves_up_nothing() -> None:
    turns: Turns[str] = Turns()
    for _ in range(50):
        turns.put(("busy",), "b")
        turns.take()
    for _ in range(10):
        turns.put(("busy",), "b")
        turns.put(("late",), "l")
    assert taken(turns, 6).count("b") == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 9), st.booleans())))
def test_all_that_waits_is_handed_out_once_and_in_order_for_each(asked: list[tuple[str, int, int, bool]]) -> None:
    turns: Turns[tuple[str, int, int]] = Turns()
    items = [(address, connection, number) for number, (address, connection, _, _) in enumerate(asked)]
    for item, (address, connection, cost, _) in zip(items, asked, strict=True):
        turns.put((address, connection), item, cost)
    kept = [item for item, (_, _, _, stays) in zip(items, asked, strict=True) if stays]
    for item in items:
        if item not in kept:
            turns.discard(item[:2], item)
            turns.discard(item[:2], item)
    assert len(turns) == len(kept)
    order = [turns.take() for _ in kept]
    for who in {item[:2] for item in kept}:
        assert [item for item in order if item[:2] == who] == [item for item in kept if item[:2] == who]
    assert not turns


def test_one_client_does_not_fill_the_batches() -> None:
    seen: list[list[int]] = []

    def work(asked: list[int]) -> list[int]:
        seen.append(asked)
        return asked

    async def run() -> None:
        with ThreadPoolExecutor(1) as worker:
            batcher: Batcher[int, int] = Batcher(work, worker, most=4, wait_s=0)
            many = [asyncio.create_task(batcher.ask(number, ("many", 0))) for number in range(12)]
            few = [asyncio.create_task(batcher.ask(100 + number, ("few", 0))) for number in range(2)]
            await asyncio.sleep(0)
            running = asyncio.create_task(batcher.run())
            await asyncio.gather(*many, *few)
            running.cancel()

    asyncio.run(run())
    assert {100, 101} <= {*seen[0]}
