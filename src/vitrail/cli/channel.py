"""Standard output and error of the program, which outlive a full disk, `| head` and a terminal that is gone."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO

from vitrail.errors import OutputLost


class Channel(io.FileIO):
    """Writes to what is open already, and drops what is not taken: none of it is worth the work that it tells of.

    Args:
        number: Of the file that is open.
        needed: Whether OutputLost is raised once where something is not taken, as it holds results.
    """

    def __init__(self, number: int, *, needed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.needed = needed

    def write(self, data: Any) -> int:
        """Write some bytes, and return how many need not be written again."""
        try:
            while (written := super().write(data)) is None:  # who reads has set it not to wait
                select.select([], [self], [])
        except OSError as error:
            if self.needed:
                self.needed = False
                raise OutputLost(
                    f"standard output: cannot be written ({error.strerror}), so not all results "
                    "were shown; files were written whole or not at all"
                ) from error
            return len(data)
        return written


def open_channels() -> None:
    """Let this program write by channels; a stream that was closed for it leads nowhere.

    Everything that prints is caught so: the live line's thread, warnings, other libraries, and what
    is left at the end.
    """
    # or the next file that is opened would be standard output
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = _open(sys.stdout, 1, needed=True)
    sys.stderr = _open(sys.stderr, 2, needed=False)


def outlive_output() -> None:
    """Drop results too that cannot be shown, as what shows them goes on for long and keeps them elsewhere."""
    channel = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(channel, Channel):
        channel.needed = False


def _open(before: TextIO | None, number: int, *, needed: bool) -> TextIO:
    options = {"encoding": "utf-8", "line_buffering": not needed}
    if isinstance(before, io.TextIOWrapper):
        lines = before.line_buffering or before.write_through
        options = {"encoding": before.encoding, "line_buffering": lines}
    # a name that the terminal has no letters for is no reason to end either
    return io.TextIOWrapper(
        io.BufferedWriter(Channel(number, needed=needed)), errors="backslashreplace", **options
    )
