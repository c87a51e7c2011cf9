"""Real processes that start at once: forked from one that has already imported what takes seconds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "vitrail.cli.app",
        "vitrail.training.train",
        "vitrail.inference.predictor",
        "vitrail.training.doctor",
        "vitrail.migrate.flags",
        "vitrail.server.serve",
        "vitrail.tuning.tune",
        "optuna",
        "matplotlib.figure",
        "tensorboard.summary.writer.record_writer",
        "torch._dynamo",
        "torch.distributed.run",
        "timm.data",
    ]
)
TORCHRUN = ("-m", "torch.distributed.run")
TUNE = ("-m", "vitrail", "tune")


class Python:
    """`python WORDS`, in a process group of its own; what it prints goes to files, or to a terminal.

    `python -m torch.distributed.run` and `vitrail tune` start their processes in the same way.
    """

    def __init__(
        self,
        *words: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: str = "",
        stderr: str = "",
    ) -> None:
        folder = tempfile.mkdtemp()
        # one that nobody waits for is cleared too, without the warning of TemporaryDirectory in another test
        self._clear = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._printed = [Path(folder, name) for name in ("out", "err")]
        place = (
            str(cwd or Path.cwd()),
            dict(env or os.environ),
            stdout or str(self._printed[0]),
            stderr or str(self._printed[1]),
        )
        self._process = SERVER.Process(target=_become, args=([str(word) for word in words], *place))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._printed[0].read_text() if self._printed[0].exists() else ""

    @property
    def err(self) -> str:
        """What it has printed so far on standard error."""
        return self._printed[1].read_text() if self._printed[1].exists() else ""

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Return its status and what it printed; what is not through in time is killed."""
        self._process.join(timeout)
        status = self._process.exitcode
        out, err = (path.read_text() if path.exists() else "" for path in self._printed)
        self.kill()
        if status is None:
            raise TimeoutError(f"not through in {timeout} s; stderr: {err}")
        return subprocess.CompletedProcess([], status, out, err)

    def kill(self) -> None:
        """Kill it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self._clear()


def python(*words: object, timeout: float = 240, **place: Any) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end."""
    return Python(*words, **place).wait(timeout)


def wait_until(event: Callable[[], bool], *processes: Python) -> None:
    """Wait for what living processes are about to do."""
    deadline = time.monotonic() + 120
    while not event():
        for process in processes:
            if process.poll() is not None:
                raise AssertionError(f"it ended before: {process.wait()}")
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _become(words: list[str], cwd: str, env: Mapping[str, str], out: str, err: str) -> None:
    os.getloadavg = lambda: (0.0, 0.0, 0.0)  # a run says when it is high
    os.setpgid(0, 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)
    if tuple(words[:2]) == TORCHRUN:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
        from torch.distributed.run import main

        subprocess_handler.Popen = _Forked  # pyright: ignore[reportPrivateImportUsage]
        main(words[2:])
    elif tuple(words[:3]) == TUNE:
        from vitrail.tuning import process

        process.Popen = _Forked
        _run(words)
    else:
        _run(words)


def _run(words: Sequence[str]) -> None:
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))  # as Python itself does
        runpy.run_path(words[0], run_name="__main__")


class _Forked(subprocess.Popen):
    """What a program is started with, but that its Python is forked."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        environment = rest[5] or dict(os.environ)
        out, err = rest[12], rest[14]
        self._child_created = True
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            for opened, stream in ((out, 1), (err, 2)):
                if opened != -1:
                    os.dup2(opened, stream)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
            os.environ.clear()
            os.environ.update(environment)
            _run([word for word in args[1:] if word != "-u"])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
