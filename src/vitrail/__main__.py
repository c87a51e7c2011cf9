"""The program `vitrail`, which is also `python -m vitrail`: started and ended without needless waiting."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from vitrail.cli.channel import open_channels
from vitrail.cli.signals import listen, tell_interrupted
from vitrail.errors import OutputLost

COLLECT_AFTER = 50_000
"""New objects between two looks for garbage: at Python's 700, importing torch is looked through
1,400 times."""


def run() -> NoReturn:
    """Run the command line and leave; an error that is no user's mistake keeps its traceback."""
    command = "".join(sys.argv[1:2])
    listen(command)
    open_channels()
    gc.set_threshold(COLLECT_AFTER)
    try:
        from vitrail.cli.app import main

        main()
    except SystemExit as end:
        _leave(int(end.code or 0))
    except (
        KeyboardInterrupt
    ) as error:  # before there was a command line, or as it said something else
        _leave(tell_interrupted(error, command)[0])


def _leave(status: int) -> NoReturn:
    """End as Python does, but without taking apart what was imported, which takes torch a second."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # waits for threads that write
    atexit._run_exitfuncs()
    with suppress(OutputLost):  # which was told where the status says something else
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
