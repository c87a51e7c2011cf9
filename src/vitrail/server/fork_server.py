"""A fork server: worker processes for work that may crash, hang or take too long, limited by the kernel and replaced.

The HTTP server forks it before there is an engine or a connection, and it forks the workers from
itself. So a worker is there in 20 ms, shares the memory of all that was imported, and holds no key,
connection or request of others. Answers are bytes: nothing is unpickled.
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
from typing import NamedTuple, NoReturn

Work = Callable[[bytearray], tuple[bytes, bytes]]
"""What workers do: takes a piece of work, returns a letter that says what the answer is, and the
answer."""
HEADER = struct.Struct("<cQd")
"""What stands before work and answers: a letter, the number of bytes, and the processor's seconds
that are allowed."""
ORDER = struct.Struct("<Ici")
"""An order to the fork server, and its answer: the order's number, what is to be done or was, and a
value."""
FORK, END, FAILED = b"f", b"k", b"e"
"""What is to be done, or was: the value of FORK is a niceness, and then a process; that of FAILED
is an errno."""
ORDER_TIMEOUT_S = 30.0
"""Seconds for an order, which takes milliseconds unless the fork server is still warming up."""
CHECK_EVERY_S = 0.25
"""Seconds between two looks at whether an answer is still wanted."""
FOREVER = float("inf")
LARGEST_ANSWER = 2**30
"""Bytes of an answer, beyond which the worker is taken for broken."""
MOST_PRINTED = 4096
"""Bytes that are kept of what a worker prints about one piece of work."""
END_CHECKS = 20
"""Milliseconds that the end of a killed worker is waited for."""

log = logging.getLogger(__name__)


class ForkServerGone(Exception):
    """No worker can be started any more."""


class WorkerLost(Exception):
    """The worker ended before it answered.

    Args:
        is_late: Whether it ended because its time was over.
        printed: What it printed, and how it ended otherwise.
    """

    def __init__(self, *, is_late: bool, printed: str) -> None:
        super().__init__(printed)
        self.is_late = is_late
        self.printed = printed


class Answer(NamedTuple):
    """What a worker made of one piece of work."""

    letter: bytes
    """What the content is, as `Work` says."""
    content: bytearray
    printed: str
    """What was printed meanwhile: libpng and libjpeg print what they think of an image."""


class ForkServer:
    """A process that forks workers, which all do the same.

    Args:
        work: What the workers do.
        warm_up: Called once, in the fork server, so that no worker need do it.
    """

    def __init__(self, work: Work, warm_up: Callable[[], None]) -> None:
        self._orders, its_end = socket.socketpair()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pid = os.fork()
        if self._pid == 0:
            self._orders.close()
            _exit_after(lambda: _take_orders(its_end, work, warm_up))
        its_end.close()

    def start_worker(self, niceness: int) -> Worker:
        """Return a new worker.

        Raises:
            ForkServerGone: It cannot be started.
        """
        with contextlib.ExitStack() as its_files, contextlib.ExitStack() as our_files:
            try:
                link, its_link = socket.socketpair()
                our_files.callback(link.close)
                its_files.callback(its_link.close)
                printed, its_stderr = os.pipe()
            except OSError as error:  # as many files are open as may be
                raise ForkServerGone(str(error)) from error
            our_files.callback(os.close, printed)
            its_files.callback(os.close, its_stderr)
            os.set_blocking(printed, False)
            pid = self._order(FORK, niceness, (its_link.fileno(), its_stderr))
            our_files.pop_all()  # which the worker closes
        return Worker(self, pid, link, printed)

    def end_worker(self, pid: int) -> int:
        """End a worker, if it still lives, and return its status as `os.waitpid` has it.

        Raises:
            ForkServerGone: Its end cannot be made sure of.
        """
        return self._order(END, pid)

    def _order(self, order: bytes, value: int, files: tuple[int, ...] = ()) -> int:
        """Give an order to the fork server, and return the value that it answers with."""
        try:
            with self._lock:
                number = next(self._numbers) % 2**32
                socket.send_fds(self._orders, [ORDER.pack(number, order, value)], files)
                done, result = self._receive_answer(number)
        except OSError as error:
            raise ForkServerGone(str(error)) from error
        if done == FAILED:
            raise ForkServerGone(os.strerror(result))
        return result

    def _receive_answer(self, number: int) -> tuple[bytes, int]:
        while True:  # the answer to an order that nobody waits for any more may come first
            answer = _receive(self._orders, ORDER.size, time.monotonic() + ORDER_TIMEOUT_S)
            answered, done, result = ORDER.unpack(answer)
            if answered == number:
                return done, result

    def close(self) -> None:
        """End the fork server; each worker ends as soon as it has no work."""
        self._orders.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


class Worker:
    """One worker process, to be used by one thread."""

    def __init__(
        self, fork_server: ForkServer, pid: int, link: socket.socket, printed: int
    ) -> None:
        self._fork_server = fork_server
        self._pid = pid
        self._link = link
        self._printed = printed

    def run(
        self,
        data: bytes | bytearray,
        *,
        processor_s: float,
        wall_s: float,
        is_wanted: Callable[[], bool],
    ) -> Answer:
        """Return what the work made of `data`.

        Args:
            data: A piece of work.
            processor_s: Seconds of processor time, after which the kernel ends the worker.
            wall_s: Seconds after which it is ended in any case.
            is_wanted: Asked from time to time whether the answer is wanted; where it is not, the
                worker is ended.

        Raises:
            WorkerLost: The worker crashed, or was ended. It is closed.
            ForkServerGone: Neither is there an answer, nor can the worker's end be made sure of. It
                is closed.
        """
        began = time.monotonic()
        try:
            return self._exchange(data, processor_s, wall_s, is_wanted)
        except OSError as error:
            raise self._end(began + processor_s) from error

    def _exchange(
        self,
        data: bytes | bytearray,
        processor_s: float,
        wall_s: float,
        is_wanted: Callable[[], bool],
    ) -> Answer:
        deadline = time.monotonic() + wall_s
        self._link.settimeout(wall_s)
        self._link.sendall(HEADER.pack(b" ", len(data), processor_s))
        self._link.sendall(data)
        letter, size, _ = HEADER.unpack(_receive(self._link, HEADER.size, deadline, is_wanted))
        if size > LARGEST_ANSWER:
            raise ConnectionAbortedError
        content = _receive(self._link, size, deadline, is_wanted)
        return Answer(letter, content, self._read_printed())

    def _end(self, late_at: float) -> WorkerLost:
        """End the process, close the worker, and return what became of it.

        Args:
            late_at: Time from which on the worker was late, whatever ended it.
        """
        try:
            status = self._fork_server.end_worker(self._pid)
            printed = self._read_printed()
        finally:
            self.close()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        # the first is the timer's, the second ours
        if number not in (signal.SIGPROF, signal.SIGKILL):
            ended_by = signal.strsignal(number) if number else "itself"
            printed = f"{printed} ended by {ended_by}".strip()
        is_late = number == signal.SIGPROF or time.monotonic() >= late_at
        return WorkerLost(is_late=is_late, printed=printed)

    def close(self) -> None:
        """Let the worker end."""
        self._link.close()
        os.close(self._printed)

    def _read_printed(self) -> str:
        """Return what was printed since the last time."""
        printed = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._printed, 65536):
                printed += more[: MOST_PRINTED - len(printed)]
        return " ".join(printed.decode("utf-8", "replace").split())


def _receive(
    link: socket.socket, size: int, deadline: float, is_wanted: Callable[[], bool] = lambda: True
) -> bytearray:
    """Return so many bytes.

    Raises:
        TimeoutError: They did not come until the deadline.
        ConnectionError: The other side is gone, or they are not wanted any more.
    """
    data = bytearray(size)
    view = memoryview(data)
    received = 0
    while received < size:
        timeout = None
        if deadline != FOREVER:
            timeout = min(CHECK_EVERY_S, max(deadline - time.monotonic(), 0.001))
        link.settimeout(timeout)
        try:
            count = link.recv_into(view[received:])
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise
            if not is_wanted():
                raise ConnectionAbortedError from None
            continue
        if not count:
            raise ConnectionResetError
        received += count
    return data


# What follows runs in the fork server and in the workers.


def _exit_after(work: Callable[[], None]) -> NoReturn:
    """End this process after some work, without anything that the process it was forked from would do at its end."""
    try:
        work()
    except BaseException:
        log.exception("a process for images failed")
    finally:
        os._exit(0)


def _take_orders(orders: socket.socket, work: Work, warm_up: Callable[[], None]) -> None:
    """Fork and end workers until the server is gone."""
    # a terminal sends these to all processes; the server ends its workers when it can
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
            value = (
                _end_worker(value, dying)
                if what == END
                else _fork_worker(orders, files, work, value)
            )
        except OSError as error:
            what = FAILED
            value = error.errno or 0
        answer = ORDER.pack(number, what, value)
        orders.sendall(answer)


def _end_worker(pid: int, dying: list[int]) -> int:
    """Kill a process, and return how it ended, if it did so by itself just now.

    A process of low priority may take long to be gone, which the next order does not wait for: it
    is added to `dying`.
    """
    dying[:] = [one for one in dying if os.waitpid(one, os.WNOHANG)[0] == 0]
    # one that has ended by itself keeps its number until it is waited for
    os.kill(pid, signal.SIGKILL)
    for _ in range(END_CHECKS):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    dying.append(pid)
    return signal.SIGKILL


def _fork_worker(orders: socket.socket, files: list[int], work: Work, niceness: int) -> int:
    try:
        pid = os.fork()
        if pid == 0:
            orders.close()
            _exit_after(lambda: _work(socket.socket(fileno=files[0]), files[1], work, niceness))
        return pid
    finally:
        for file in files:
            os.close(file)


def _work(link: socket.socket, stderr: int, work: Work, niceness: int) -> None:
    """Work until the server is gone."""
    os.dup2(stderr, 2)
    os.set_blocking(2, False)  # what nobody reads is dropped
    os.nice(niceness)
    with contextlib.suppress(OSError):
        while True:
            _, size, seconds = HEADER.unpack(_receive(link, HEADER.size, FOREVER))
            data = _receive(link, size, FOREVER)
            # whose signal ends the process, whatever it is doing
            signal.setitimer(signal.ITIMER_PROF, seconds)
            letter, answer = work(data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            link.sendall(HEADER.pack(letter, len(answer), 0))
            link.sendall(answer)
