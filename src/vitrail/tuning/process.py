"""A training in a process of its own: started, followed by its metrics.jsonl while it grows, stopped and judged."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import to_yaml
from vitrail.errors import name_option, naming_flags, shorten
from vitrail.files import refusal_told, write_whole

LOOK_S = 0.1
"""Seconds between two looks at a training."""
SAVE_S = 600.0
"""Seconds that a training may take to save and leave before it is killed."""
STOPPED = os.EX_TEMPFAIL
"""Exit status of a training that was told to stop, and is saved."""


class Training:
    """A training in a process of its own, which ends alone where it fails, and with this process.

    Args:
        config: Its settings; the last part of the folder's name stands for it.
        folder: Folder of the run; one that holds a run is gone on with.
        header: What the recipe's file says above its settings.
    """

    def __init__(self, config: TrainConfig, folder: Path, header: str) -> None:
        self.folder = folder
        self.begun = time.monotonic()
        self._recipe = folder.with_name(f"{folder.name}.yaml")
        self._log = folder.with_name(f"{folder.name}.log")
        write_whole(self._recipe, to_yaml(config, header).encode())
        words = [sys.executable, "-m", "vitrail.tuning.child", str(os.getpid())]
        with naming_flags():
            words += ["train", str(self._recipe), name_option("resume"), str(folder)]
        with refusal_told(self._log, None), self._log.open("ab") as log:
            # a session of its own, so that Ctrl-C in the terminal reaches it through this process
            # alone
            self._process = Popen(
                words, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.begun

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the numbers of each epoch once it is there, and an empty row at every look; end with the process."""
        seen: set[int] = set()
        while True:
            has_ended = self._process.poll() is not None
            for row in read_rows(self.folder):
                if row["epoch"] not in seen:
                    seen.add(row["epoch"])
                    yield row
            if has_ended:
                return
            yield {}
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """Tell the training to save and leave, and wait for that."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SAVE_S)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def failure(self) -> str:
        """Say why the training failed; nothing where it is finished, or saved and stopped."""
        status = self._process.wait()
        if status in (0, STOPPED):
            return ""
        if status == -signal.SIGKILL:
            return "killed, most often for lack of memory"
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        return self._last_words() or f"ended with status {status}"

    @property
    def is_finished(self) -> bool:
        """Whether the training came to its end."""
        return self._process.wait() == 0

    def _last_words(self) -> str:
        """Return the last line that the training printed: its error, where that is one of ours."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - 4000))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        said = [line for line in lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        last = (errors or said or [""])[-1]
        return shorten(last.removeprefix("error: "), 300)[1:-1]


def read_rows(folder: Path) -> list[Mapping[str, Any]]:
    """Return the numbers of the epochs of a run that are written whole; none where there is no run yet."""
    try:
        text = (folder / "metrics.jsonl").read_bytes()
    except OSError:
        return []
    rows = []
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError:  # a disk that was full
            break
    return rows


@dataclass(frozen=True)
class Measure:
    """How good a run is: by a number of its epochs, whose best one counts."""

    metric: str
    is_lower_better: bool

    def value(self, row: Mapping[str, Any]) -> float | None:
        """Return the number of an epoch; None where it was not evaluated, or came to NaN or Inf."""
        value = row.get(self.metric)
        return None if value is None or not math.isfinite(value) else float(value)

    def best(self, values: Mapping[int, float], until: int | None = None) -> float | None:
        """Return the best of the numbers by epoch, up to an epoch; None where there is none."""
        taken = [value for epoch, value in values.items() if until is None or epoch <= until]
        if not taken:
            return None
        return min(taken) if self.is_lower_better else max(taken)

    def rank(self, value: float) -> float:
        """Return a number that is lower for a better value."""
        return value if self.is_lower_better else -value

    def read(self, folder: Path) -> dict[int, float]:
        """Return the numbers of a run by epoch."""
        values = {}
        for row in read_rows(folder):
            if (value := self.value(row)) is not None:
                values[int(row["epoch"])] = value
        return values
