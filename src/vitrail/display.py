"""What a person sees while something runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vitrail.errors import CheckpointError, harmless
from vitrail.files import GrowingFile

PHASES = {
    "data_s": "waiting for images",
    "forward_backward_s": "forward and backward",
    "optimizer_s": "optimizer",
    "eval_s": "evaluation",
    "save_s": "saving",
}
"""Of an epoch, as in its row of numbers."""


LONGEST_BAR, SHORTEST_BAR = 24, 10
ESSENTIAL = 2
"""Of the values beside the bar, the first, which stay where the terminal is narrow."""


def headline_metric(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number by which an evaluated epoch is known, without val_ before it, and its title."""
    return ("map", "mAP") if "val_map" in row else ("top1", "Top-1")


class Display(Protocol):
    """Where long work reports to."""

    def note(self, text: str) -> None:
        """Say something the user should know once."""

    def warn(self, text: str) -> None:
        """Say something the user asked for and did not get, or will regret."""

    def begin(self, label: str, total: int | None, done: int = 0) -> None:
        """Start a piece of work of `total` steps."""

    def advance(self, steps: int = 1, **values: str) -> None:
        """Move on, with what to show beside the bar."""

    def row(self, values: Mapping[str, Any]) -> None:
        """Show the numbers of one finished epoch."""

    def end(self) -> None:
        """Finish the piece of work."""

    def keep(self, path: Path) -> None:
        """Write what was shown, and all that will be, to the end of a file too."""


class Quiet:
    """A display that shows nothing, for use from Python and in tests."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def begin(self, label: str, total: int | None, done: int = 0) -> None: ...
    def advance(self, steps: int = 1, **values: str) -> None: ...
    def row(self, values: Mapping[str, Any]) -> None: ...
    def end(self) -> None: ...
    def keep(self, path: Path) -> None: ...


class Terminal:
    """Progress on standard error, so that standard output stays clean for results; a file gets it as plain text."""

    def __init__(self, *, silent: bool = False, line_every_s: float = 60) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=silent)
        self._progress: Progress | None = None
        self._line_every_s = line_every_s
        self._line_shown = time.monotonic()
        self._before: deque[str] = deque(maxlen=1000)  # until there is a file; most commands have none
        self._file: GrowingFile | None = None
        self._refused = False

    def note(self, text: str) -> None:
        self._show(text, "dim")

    def warn(self, text: str) -> None:
        self._show(f"warning: {text}", "yellow")

    def keep(self, path: Path) -> None:
        self._file = GrowingFile(path)
        for text in self._before:
            self.record(text)
        self._before.clear()

    def record(self, text: str) -> None:
        """Write to the file what is shown by others."""
        if self._file is None:
            self._before.append(text)
            return
        for line in text.splitlines():
            self._file.add(harmless(line))
        try:
            self._file.write()
        except CheckpointError as error:
            if not self._refused:
                self._refused = True
                self.console.print(harmless(f"warning: {error}; tried again with each line"), style="yellow")

    def _show(self, text: str, style: str | None = None) -> None:
        text = harmless(text)  # a name in it may hold what a terminal obeys
        self.console.print(text, style=style)
        self.record(text)

    def begin(self, label: str, total: int | None, done: int = 0) -> None:
        self._progress = Progress(
            _Line(self.console),
            console=self.console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file or a pipe must get there
            disable=not self.console.is_terminal,
        )
        self._progress.add_task(harmless(label), total=total, completed=done, values=())
        self._progress.start()

    def advance(self, steps: int = 1, **values: str) -> None:
        assert self._progress is not None
        task = self._progress.tasks[0]
        if values:
            shown = [harmless(f"{name.replace('_', ' ')} {text}") for name, text in values.items()]
            self._progress.update(task.id, values=shown)
            if time.monotonic() - self._line_shown >= self._line_every_s:
                self._line_shown = time.monotonic()
                line = f"{task.description} {task.completed:.0f}/{task.total}  {'  '.join(shown)}"
                (self.record if self.console.is_terminal else self._show)(line)
        self._progress.advance(task.id, steps)

    def row(self, values: Mapping[str, Any]) -> None:
        parts = [f"epoch {values['epoch']:>3}"]
        if values["train_loss"] is not None:
            parts += [f"loss {values['train_loss']:.4f}"]
        if "val_loss" in values:
            name, title = headline_metric(values)
            title = title.replace("Top", "top")
            parts += [f"val loss {values['val_loss']:.4f}", f"{title} {values[f'val_{name}']:6.2f} %"]
        parts += [f"{values['images_per_s']:,.0f} images/s"]
        if phases := [f"{label} {values[name]:.1f}" for name, label in PHASES.items() if values.get(name)]:
            parts += [f"seconds: {', '.join(phases)}"]
        self._show("  ".join(parts))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Line(ProgressColumn):
    """What is shown of a piece of work: one row of the terminal, however narrow it is."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> RenderableType:
        done, values = f"{task.completed:,.0f}", task.fields["values"]
        elapsed = _clock(task.finished_time if task.finished else task.elapsed)
        if task.total is None:
            return Text(f"{task.description} {done}  {'  '.join([*values, elapsed])} elapsed", no_wrap=True)
        heads = [f"{task.description} {done}/{task.total:,.0f}", f"{task.completed / max(task.total, 1):.0%}"]
        before, after, bar = fit(heads, values, elapsed, _clock(task.time_remaining), self._console.width - 1)
        row = Table.grid(padding=(0, 1))
        row.add_row(before, *([ProgressBar(task.total, task.completed, bar)] if bar else []), Text(after, no_wrap=True))
        return row


def fit(heads: Sequence[str], values: Sequence[str], elapsed: str, left: str, width: int) -> tuple[str, str, int]:
    """Choose what of a live line is shown in a row of the terminal.

    Args:
        heads: What stands before the bar, and what does where that is too long.
        values: Beside the bar, the most important first.
        elapsed: Time so far.
        left: Time to come.
        width: Of the row.

    Returns:
        What stands before the bar, what behind it, and how long the bar is, which is 0 where there is no room for one.
    """
    fewest = min(ESSENTIAL, len(values))
    kept = [values[:count] for count in range(len(values), fewest - 1, -1)]
    tails = [[*values, f"{elapsed} elapsed, {left} left"], *([*some, f"{left} left"] for some in kept)]
    for head in heads:
        for tail in tails:
            after = "  ".join(tail)
            room = width - cell_len(head) - cell_len(after) - 2
            if room >= SHORTEST_BAR:
                return head, after, min(room, LONGEST_BAR)
    after = "  ".join(tails[-1])
    return heads[-1], after[: max(0, width - cell_len(heads[-1]) - 1)], 0


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
