"""Cells of CSV files that no spreadsheet takes for a formula, and the way back to what stood in them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

COMPUTED = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a text begins that a spreadsheet computes, those of East Asian keyboards too; or one that was
guarded before."""
GUARD = "'"


def guard(text: str) -> str:
    """Return a text that a spreadsheet shows, with an apostrophe before what it would compute."""
    return GUARD + text if COMPUTED.match(text) else text


def unguard(text: str) -> str:
    """Return what `guard` was given."""
    return text[1:] if text.startswith(GUARD) and COMPUTED.match(text) else text


def write_rows(stream: TextIO, rows: Iterable[Sequence[Any]], *, guarded: bool) -> None:
    """Write rows of a CSV file.

    Args:
        stream: Opened with newline="".
        rows: Of numbers, which are never guarded, and of texts.
        guarded: Whether texts that a spreadsheet would compute are written with an apostrophe in
            front.
    """
    writer = csv.writer(stream, lineterminator="\n")
    for row in rows:
        cells = list(row)
        if guarded:
            for place, cell in enumerate(cells):
                if isinstance(cell, str):
                    cells[place] = guard(cell)
        writer.writerow(cells)
