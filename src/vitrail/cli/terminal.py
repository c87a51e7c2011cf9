"""The terminal that a command reports to: progress on standard error, our own warnings as one line each."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.distributed.launch import is_main_process
from vitrail.errors import Interrupted, Stopped, VitrailError, escape_text

if TYPE_CHECKING:
    from vitrail.display import Terminal


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """Show progress on the terminal of the first process, and our own warnings as one line each."""
    from vitrail.display import Terminal

    display = Terminal(silent=not is_main_process())
    original = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            display.warn(str(message))
        else:
            text = "\n".join(map(escape_text, str(message).split("\n")))
            original(text, category, filename, *rest)
            display.record(warnings.formatwarning(text, category, filename, rest[0]))

    warnings.showwarning = show
    try:
        yield display
    except BaseException as error:
        display.record(_last_words(error))
        raise
    finally:
        display.end()
        warnings.showwarning = original


def _last_words(error: BaseException) -> str:
    """Return what the command will end with."""
    if isinstance(error, Interrupted | KeyboardInterrupt | Stopped):
        return str(error) or "stopped"
    return f"error: {error}" if isinstance(error, VitrailError) else traceback.format_exc()
