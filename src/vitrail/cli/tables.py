"""What a command found, as tables and lines on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.errors import escape_text

if TYPE_CHECKING:
    from vitrail.api.results import Result


def show_line(text: str) -> None:
    """Print one line, in which no name of a file or a class is obeyed by the terminal."""
    print(escape_text(text))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table, as wide as the terminal, or wide enough for long names elsewhere."""
    from vitrail.api.results import WIDTH, Table, console_for

    width = None if sys.stdout.isatty() else WIDTH
    Table(title, tuple(columns), tuple(map(tuple, rows))).print_to(console_for(sys.stdout, width))


def show_result(result: Result) -> None:
    """Print the tables of a result, and its lines below them."""
    for table in result.tables():
        show_table(table.title, table.columns, table.rows)
    for line in result.lines():
        show_line(line)
