"""Verify from Python: whether files are as they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.options import shown
from vitrail.api.results import ResultList, Table
from vitrail.display import Display
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.inference.verify import Verified


@dataclass(frozen=True)
class FileChecks(ResultList[Any]):
    """Whether files are as they were written."""

    items: tuple[Verified, ...]

    @property
    def damaged(self) -> list[Verified]:
        """The files that are damaged, of no known kind, or not there."""
        return [one for one in self.items if one.is_whole is False]

    @property
    def absent(self) -> list[Verified]:
        """Those of them that are not there, or are no files."""
        from vitrail.inference.verify import ABSENT

        return [one for one in self.items if one.kind == ABSENT]

    def tables(self) -> Sequence[Table]:
        """Return one row a file."""
        rows = tuple((one.path, one.kind, one.verdict, one.by) for one in self.items)
        return [Table("", ("file", "what", "is", "by"), rows)]


@checked
def verify(*files: str | Path, display: Display | None = None, progress: bool = True) -> FileChecks:
    """Say whether files are as they were written, without running anything that is in them.

    `vitrail.verify("best.safetensors", "best.onnx")` does what `vitrail verify best.safetensors
    best.onnx` does.

    Args:
        files: Weight files, exported files, saves, lists of parts, indexes of shards, or names of
            published weights.
        display: Where the progress of a download is shown; None is the terminal or notebook.
        progress: Whether it is shown in a terminal or notebook.

    Raises:
        ConfigError: No file is given.
    """
    if not files:
        raise ConfigError("verify needs files, such as runs/digits/best.safetensors")

    from vitrail.inference.verify import verify as run

    with shown(display, progress) as display:
        return FileChecks(tuple(run(Path(file), display) for file in files))
