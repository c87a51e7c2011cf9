"""Processes for work that may crash, hang or take too long: made in a moment, limited by the kernel, and replaced.

The nursery is forked from the server before it has an engine or connections, and forks the workers from itself. So a
worker is there in 20 ms, shares the memory of all that was imported, and holds no key, connection or request of others.
What it answers is bytes: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NoReturn

Work = Callable[[bytearray], tuple[bytes, bytes]]
"""Returns one letter, and the bytes that it stands before."""
HEAD = struct.Struct("<cQd")
"""Letter, length, and seconds of the processor's time."""
ORDER = struct.Struct("<Ici")
"""Its number, which the answer has too; what is to be done; and a value."""
FORK, END, FAILED = b"f", b"k", b"e"
PATIENCE_S = 30.0
"""For what the nursery does, which takes milliseconds, but for its warming up."""
LOOK_S = 0.25
"""How often it is asked whether an answer is still wanted."""
FOR_EVER = float("inf")
LARGEST = 2**30
"""Bytes of an answer."""
MOST_SAID = 4096
"""Bytes that a worker may print about one piece of work; the rest is dropped."""

log = logging.getLogger(__name__)


class NurseryGone(Exception):
    """No worker can be made any more."""


class WorkerLost(Exception):
    """The worker ended before it answered.

    Args:
        is_late: Whether that was because its time was over.
        said: What it printed, and how it ended otherwise.
    """

    def __init__(self, *, is_late: bool, said: str) -> None:
        super().__init__(said)
        self.is_late, self.said = is_late, said


class Nursery:
    """Makes workers that all do the same.

    Args:
        work: What they do.
        warm_up: Called once, in the nursery, so that no worker need do it.
    """

    def __init__(self, work: Work, warm_up: Callable[[], None]) -> None:
        self._orders, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pid = os.fork()
        if self._pid == 0:
            self._orders.close()
            _leave_after(lambda: _tend(theirs, work, warm_up))
        theirs.close()

    def make(self, niceness: int) -> Worker:
        """Return a new worker.

        Raises:
            NurseryGone: It cannot be made.
        """
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                link, other = socket.socketpair()
                ours.callback(link.close)
                theirs.callback(other.close)
                said, saying = os.pipe()
            except OSError as error:  # as many files are open as may be
                raise NurseryGone(str(error)) from error
            ours.callback(os.close, said)
            theirs.callback(os.close, saying)
            os.set_blocking(said, False)
            pid = self._order(FORK, niceness, (other.fileno(), saying))
            ours.pop_all()  # which the worker closes
        return Worker(self, pid, link, said)

    def end(self, pid: int) -> int:
        """End a worker, if it still lives, and return its status in the system's words."""
        return self._order(END, pid)

    def _order(self, order: bytes, value: int, files: tuple[int, ...] = ()) -> int:
        try:
            with self._lock:
                number = next(self._numbers) % 2**32
                socket.send_fds(self._orders, [ORDER.pack(number, order, value)], files)
                while True:  # the answer to an order that nobody waits for any more may come first
                    answer = _receive(self._orders, ORDER.size, time.monotonic() + PATIENCE_S)
                    answered, done, value = ORDER.unpack(answer)
                    if answered == number:
                        break
        except OSError as error:
            raise NurseryGone(str(error)) from error
        if done == FAILED:
            raise NurseryGone(os.strerror(value))
        return value

    def close(self) -> None:
        """End the nursery; each worker ends as soon as it has no work."""
        self._orders.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


class Worker:
    """One process, for one thread."""

    def __init__(self, nursery: Nursery, pid: int, link: socket.socket, said: int) -> None:
        self._nursery, self._pid, self._link, self._said = nursery, pid, link, said

    def ask(
        self, data: bytes | bytearray, *, processor_s: float, wall_s: float, is_wanted: Callable[[], bool]
    ) -> tuple[bytes, bytearray, str]:
        """Return the letter and the bytes that the work made of `data`, and what was printed meanwhile.

        Args:
            data: For the work.
            processor_s: After so much of a processor's time the kernel ends the worker.
            wall_s: After so long it is ended in any case.
            is_wanted: Asked from time to time; where it is not, the worker is ended.

        Raises:
            WorkerLost: It crashed, or was ended. It is closed.
            NurseryGone: And its end cannot be made sure of. It is closed.
        """
        began = time.monotonic()
        end = began + wall_s
        try:
            self._link.settimeout(wall_s)
            self._link.sendall(HEAD.pack(b" ", len(data), processor_s))
            self._link.sendall(data)
            letter, size, _ = HEAD.unpack(_receive(self._link, HEAD.size, end, is_wanted))
            if size > LARGEST:
                raise ConnectionAbortedError
            return letter, _receive(self._link, size, end, is_wanted), self._listen()
        except OSError as error:
            try:
                status = self._nursery.end(self._pid)
                said = self._listen()
            finally:
                self.close()
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            if number not in (signal.SIGPROF, signal.SIGKILL):
                said = f"{said} ended by {signal.strsignal(number) if number else 'itself'}".strip()
            is_late = number == signal.SIGPROF or time.monotonic() - began >= processor_s
            raise WorkerLost(is_late=is_late, said=said) from error

    def close(self) -> None:
        """Let it end."""
        self._link.close()
        os.close(self._said)

    def _listen(self) -> str:
        """Return what was printed since the last time; libpng and libjpeg print what they think of an image."""
        said = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._said, 65536):
                said += more[: MOST_SAID - len(said)]
        return " ".join(said.decode("utf-8", "replace").split())


def _receive(link: socket.socket, size: int, end: float, is_wanted: Callable[[], bool] = lambda: True) -> bytearray:
    """Return so many bytes.

    Raises:
        TimeoutError: They did not come until `end`.
        ConnectionError: The other side is gone, or they are not wanted any more.
    """
    data = bytearray(size)
    there, room = 0, memoryview(data)
    while there < size:
        link.settimeout(None if end == FOR_EVER else min(LOOK_S, max(end - time.monotonic(), 0.001)))
        try:
            if not (come := link.recv_into(room[there:])):
                raise ConnectionResetError
            there += come
        except TimeoutError:
            if time.monotonic() >= end:
                raise
            if not is_wanted():
                raise ConnectionAbortedError from None
    return data


def _leave_after(work: Callable[[], None]) -> NoReturn:
    """End this process, and nothing of the one that it was forked from."""
    try:
        work()
    except BaseException:
        log.exception("a process for images failed")
    finally:
        os._exit(0)


def _tend(orders: socket.socket, work: Work, warm_up: Callable[[], None]) -> None:
    """Fork and end workers until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which may be sent to all; the server ends its workers when it can
        signal.signal(number, signal.SIG_IGN)
    warm_up()
    gc.freeze()  # what no collection touches stays shared
    dying: list[int] = []
    while True:
        order, files, *_ = socket.recv_fds(orders, ORDER.size, 2)
        if not order:
            return
        number, what, value = ORDER.unpack(order)
        try:
            value = _end(value, dying) if what == END else _fork(orders, files, work, value)
        except OSError as error:
            what, value = FAILED, error.errno or 0
        answer = ORDER.pack(number, what, value)
        orders.sendall(answer)


def _end(pid: int, dying: list[int]) -> int:
    """Kill a process, and return how it ended, if it did so by itself just now.

    A process of low priority may take long to be gone, which the next one does not wait for.
    """
    dying[:] = [one for one in dying if os.waitpid(one, os.WNOHANG)[0] == 0]
    os.kill(pid, signal.SIGKILL)  # one that has ended by itself keeps its number until it is waited for
    for _ in range(20):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    dying.append(pid)
    return signal.SIGKILL


def _fork(orders: socket.socket, files: list[int], work: Work, niceness: int) -> int:
    try:
        pid = os.fork()
        if pid == 0:
            orders.close()
            _leave_after(lambda: _serve(socket.socket(fileno=files[0]), files[1], work, niceness))
        return pid
    finally:
        for file in files:
            os.close(file)


def _serve(link: socket.socket, saying: int, work: Work, niceness: int) -> None:
    """Work until the server is gone."""
    os.dup2(saying, 2)
    os.set_blocking(2, False)  # what nobody reads is dropped
    os.nice(niceness)
    with contextlib.suppress(OSError):
        while True:
            _, size, seconds = HEAD.unpack(_receive(link, HEAD.size, FOR_EVER))
            data = _receive(link, size, FOR_EVER)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal ends the process, whatever it is doing
            letter, answer = work(data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            link.sendall(HEAD.pack(letter, len(answer), 0))
            link.sendall(answer)
