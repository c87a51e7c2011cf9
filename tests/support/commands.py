"""Commands run in this process, as a terminal would run them."""

from __future__ import annotations

import pytest

from vitrail.cli.app import main


def run(*tokens: object) -> int:
    """Return the exit status of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(token) for token in tokens])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def refused(capsys: pytest.CaptureFixture, *tokens: object) -> str:
    """Return the one line that a refused command prints."""
    assert run(*tokens) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed.err
    return line
