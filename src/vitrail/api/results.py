"""Results that print well: tables as text in a terminal, as HTML in a notebook, and as frames of pandas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, overload

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from vitrail.errors import MissingExtra, escape_text

T = TypeVar("T")
WIDTH = 200
"""Columns of a table that goes to no terminal, so that names are not broken."""
SHOWN_ROWS = 50
"""Rows of a long result that are printed; all of them are in the result."""


def copy_fields(kind: type[Any], source: object) -> dict[str, Any]:
    """Return what an object has under the names of the fields of a dataclass."""
    return {field.name: getattr(source, field.name) for field in fields(kind)}


@dataclass(frozen=True)
class Table:
    """A table as it is shown: texts in columns, under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def side_of(self, number: int) -> Literal["left", "right"]:
        """Return the side that a column is aligned on: numbers on the right."""
        return "right" if self.is_numeric(number) else "left"

    def is_numeric(self, number: int) -> bool:
        """Say whether a column holds numbers."""
        texts = [row[number] for row in self.rows if row[number]]
        digits = [text.replace(",", "").replace(".", "").replace("-", "") for text in texts]
        return bool(self.rows) and all(text.isdigit() for text in digits)

    def __str__(self) -> str:
        stream = StringIO()
        self.print_to(console_for(stream, WIDTH))
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def _repr_html_(self) -> str:
        return self.to_html()

    def print_to(self, console: Console) -> None:
        """Print the table; no name in it is obeyed by a terminal."""
        title = escape_text(self.title) or None
        table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, column in enumerate(self.columns):
            table.add_column(escape_text(column), justify=self.side_of(number), overflow="fold")
        for row in self.rows:
            table.add_row(*map(escape_text, row))
        console.print(table)

    def to_html(self) -> str:
        """Return the table as HTML."""
        aligned = list(map(self.side_of, range(len(self.columns))))
        head = _html_row("th", self.columns, aligned)
        body = "".join(_html_row("td", row, aligned) for row in self.rows)
        title = f"<caption>{escape(escape_text(self.title))}</caption>" if self.title else ""
        return f"<table>{title}<thead>{head}</thead><tbody>{body}</tbody></table>"


def _html_row(tag: str, texts: Sequence[str], aligned: Sequence[str]) -> str:
    cells = []
    for text, side in zip(texts, aligned, strict=True):
        cells.append(f'<{tag} style="text-align: {side}">{escape(escape_text(text))}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>"


def console_for(file: Any, width: int | None) -> Console:
    """Return a console that writes texts as they are, without marks or colours of its own."""
    return Console(file=file, markup=False, emoji=False, highlight=False, width=width)


class Result:
    """What a function returns: a dataclass that is shown as tables and, below them, as lines."""

    def tables(self) -> Sequence[Table]:
        """Return the tables that show it."""
        return ()

    def lines(self) -> Sequence[str]:
        """Return what is said below the tables."""
        return ()

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the rows of its main table as plain values."""
        return ()

    def to_pandas(self) -> Any:
        """Return `records` as a DataFrame.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("to_pandas needs pandas; run: pip install pandas") from error
        return pandas.DataFrame(list(self.records()))

    def __str__(self) -> str:
        return "\n".join([*map(str, self.tables()), *map(escape_text, self.lines())])

    def _repr_html_(self) -> str:
        parts = [table.to_html() for table in self.tables()]
        for line in self.lines():
            parts.append(f"<div>{escape(escape_text(line))}</div>")
        return "".join(parts)


@dataclass(frozen=True)
class ResultList(Result, Sequence[T], Generic[T]):
    """A result of several parts, dataclasses of plain values, which is used as a list of them."""

    items: tuple[T, ...]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a part."""
        return [asdict(cast(Any, one)) for one in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]


@dataclass(frozen=True)
class Picture:
    """A picture in a file, which a notebook shows."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()

    def __fspath__(self) -> str:
        return str(self.path)


def first_rows(rows: Sequence[T]) -> Sequence[T]:
    """Return the rows of a long result that are printed."""
    return rows[:SHOWN_ROWS]


def rows_left_out(count: int) -> list[str]:
    """Say how many rows of a long result are not printed."""
    if count <= SHOWN_ROWS:
        return []
    return [f"{count - SHOWN_ROWS:,} more rows; to_pandas() or a loop has all of them"]
