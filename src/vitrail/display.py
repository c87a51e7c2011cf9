"""Progress display: a live line with a bar on a terminal, plain lines elsewhere, and the same as a log file."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vitrail.errors import CheckpointError, escape_text
from vitrail.files import GrowingFile

PHASES = {
    "data_s": "waiting for images",
    "teacher_s": "teacher",
    "forward_backward_s": "forward and backward",
    "optimizer_s": "optimizer",
    "eval_s": "evaluation",
    "save_s": "saving",
}
"""Phases of an epoch, by their names in its row of numbers."""
LONGEST_BAR = 24
SHORTEST_BAR = 10
NOTEBOOK_WIDTH = 100
"""Characters of the live line in a notebook."""
NOTEBOOK_EVERY_S = 0.2
"""Seconds between two states of the live line in a notebook."""
ESSENTIAL = 2
"""How many values beside the bar stay where the terminal is narrow: the first ones."""


def headline_metric(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number that an evaluated epoch is judged by, without val_ before it, and its title."""
    return ("map", "mAP") if "val_map" in row else ("top1", "Top-1")


@runtime_checkable
class Display(Protocol):
    """Receiver of the progress of long work."""

    def note(self, text: str) -> None:
        """Say something that the user should know once."""

    def warn(self, text: str) -> None:
        """Say something that the user asked for and did not get, or will regret."""

    def begin(self, label: str, total: int | None, done: int = 0) -> None:
        """Start a piece of work of `total` steps."""

    def advance(self, steps: int = 1, **values: str) -> None:
        """Move the bar on, and show values beside it."""

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
        self.console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=silent
        )
        self._progress: Progress | None = None
        self._cell: _NotebookLine | None = None
        self._line_every_s = line_every_s
        self._line_shown = time.monotonic()
        # what was shown before there is a file; most commands have none
        self._before: deque[str] = deque(maxlen=1000)
        self._file: GrowingFile | None = None
        self._refused = False

    @property
    def is_seen(self) -> bool:
        """Whether a person looks at it while the work goes on, in a terminal or in a notebook."""
        return not self.console.quiet and (self.console.is_terminal or self.console.is_jupyter)

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
        """Write a text to the file alone, such as one that others have shown."""
        if self._file is None:
            self._before.append(text)
            return
        for line in text.splitlines():
            self._file.add(escape_text(line))
        try:
            self._file.write()
        except CheckpointError as error:
            if not self._refused:
                self._refused = True
                self.console.print(
                    escape_text(f"warning: {error}; tried again with each line"), style="yellow"
                )

    def _show(self, text: str, style: str | None = None) -> None:
        """Show a text on the terminal, and write it to the file."""
        text = escape_text(text)  # a name in it may hold what a terminal obeys
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
        self._progress.add_task(escape_text(label), total=total, completed=done, values=())
        self._progress.start()
        if self.console.is_jupyter and self.is_seen:
            self._cell = _NotebookLine()

    def advance(self, steps: int = 1, **values: str) -> None:
        assert self._progress is not None
        task = self._progress.tasks[0]
        if values:
            shown = [
                escape_text(f"{name.replace('_', ' ')} {text}") for name, text in values.items()
            ]
            self._progress.update(task.id, values=shown)
            if time.monotonic() - self._line_shown >= self._line_every_s:
                self._line_shown = time.monotonic()
                of_all = "" if task.total is None else f"/{task.total}"
                line = f"{task.description} {task.completed:.0f}{of_all}  {'  '.join(shown)}"
                # a terminal and a notebook have the live line
                if self.is_seen:
                    self.record(line)
                else:
                    self._show(line)
        self._progress.advance(task.id, steps)
        if self._cell is not None:
            self._cell.show(task)

    def row(self, values: Mapping[str, Any]) -> None:
        parts = [f"epoch {values['epoch']:>3}"]
        if values["train_loss"] is not None:
            parts.append(f"loss {values['train_loss']:.4f}")
        if "val_loss" in values:
            name, title = headline_metric(values)
            title = title.replace("Top", "top")
            parts.append(f"val loss {values['val_loss']:.4f}")
            if f"val_{name}" in values:
                parts.append(f"{title} {values[f'val_{name}']:6.2f} %")
        if "images_per_s" in values:  # of the initial weights there is none
            parts.append(f"{values['images_per_s']:,.0f} images/s")
        phases = [
            f"{label} {values[name]:.1f}" for name, label in PHASES.items() if values.get(name)
        ]
        if phases:
            parts.append(f"seconds: {', '.join(phases)}")
        self._show("  ".join(parts))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._cell is not None:
            self._cell.clear()
            self._cell = None


class _Line(ProgressColumn):
    """The live line of a piece of work: one row of the terminal, however narrow it is."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> RenderableType:
        done = f"{task.completed:,.0f}"
        values = task.fields["values"]
        elapsed = _clock(task.finished_time if task.finished else task.elapsed)
        if task.total is None:
            return Text(
                f"{task.description} {done}  {'  '.join([*values, elapsed])} elapsed", no_wrap=True
            )
        heads = [
            f"{task.description} {done}/{task.total:,.0f}",
            f"{task.completed / max(task.total, 1):.0%}",
        ]
        left = _clock(task.time_remaining)
        before, after, bar_width = fit_live_line(
            heads, values, elapsed, left, self._console.width - 1
        )
        cells: list[RenderableType] = [before, Text(after, no_wrap=True)]
        if bar_width:
            cells.insert(1, ProgressBar(task.total, task.completed, bar_width))
        row = Table.grid(padding=(0, 1))
        row.add_row(*cells)
        return row


class _NotebookLine:
    """The live line in the output of a notebook's cell, which needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import HTML, DisplayHandle

        self._html = HTML
        self._handle = DisplayHandle()
        self._handle.display(HTML(""))
        self._console = Console(file=StringIO(), width=NOTEBOOK_WIDTH, emoji=False, highlight=False)
        self._line = _Line(self._console)
        self._shown = -math.inf

    def show(self, task: Task) -> None:
        """Show how far a piece of work is, a few times a second."""
        now = time.monotonic()
        if now - self._shown < NOTEBOOK_EVERY_S:
            return
        self._shown = now
        with self._console.capture() as capture:
            self._console.print(self._line.render(task))
        self._handle.update(self._html(f"<pre>{escape(capture.get().rstrip())}</pre>"))

    def clear(self) -> None:
        """Leave nothing of the line, as a terminal does."""
        self._handle.update(self._html(""))


def fit_live_line(
    heads: Sequence[str], values: Sequence[str], elapsed: str, left: str, width: int
) -> tuple[str, str, int]:
    """Choose what of a live line fits into a row of the terminal.

    Args:
        heads: Text before the bar, and a shorter one for where that is too long.
        values: Texts behind the bar, the most important first.
        elapsed: Time so far.
        left: Time to come.
        width: Characters of the row.

    Returns:
        The text before the bar, the text behind it, and the length of the bar, 0 where there is no
        room for one.
    """
    # from all of the values to the essential ones
    tails = [[*values, f"{elapsed} elapsed, {left} left"]]
    fewest = min(ESSENTIAL, len(values))
    for count in range(len(values), fewest - 1, -1):
        tails.append([*values[:count], f"{left} left"])
    for head in heads:
        for tail in tails:
            after = "  ".join(tail)
            room = width - cell_len(head) - cell_len(after) - 2
            if room >= SHORTEST_BAR:
                return head, after, min(room, LONGEST_BAR)
    after = "  ".join(tails[-1])
    return heads[-1], after[: max(0, width - cell_len(heads[-1]) - 1)], 0


def _clock(seconds: float | None) -> str:
    """Return a time as hours, minutes and seconds; dashes while it is unknown."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
