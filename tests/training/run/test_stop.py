"""Signals and hours, with real signals to this process."""

import os
import signal
import time

import pytest

from vitrail.training.run import stop as module
from vitrail.training.run.stop import Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_not_obeyed(number: signal.Signals) -> None:
    with Stop() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name


def test_a_second_interrupt_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the terminal's and torchrun's, at the same moment
        assert stop.reason == "SIGINT"
        time.sleep(0.06)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_before_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stop():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_hours_run_out() -> None:
    assert Stop(1).reason is None
    stop = Stop(0.01 / 3600)
    time.sleep(0.02)
    assert stop.reason == "train.max_hours=2.77778e-06"


def test_another_thread_listens_to_no_signal() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def listen() -> str | None:
        with Stop() as stop:
            return stop.reason

    with ThreadPoolExecutor() as pool:
        assert pool.submit(listen).result() is None
