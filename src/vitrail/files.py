"""Files that appear whole or not at all, and the system's refusals as one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from vitrail.errors import CheckpointError
from vitrail.wire import Buffer

FREE_SPACE = "free space or choose another output.root"


def write_whole(
    path: Path,
    data: Buffer | Iterable[Buffer],
    advice: str = FREE_SPACE,
    older: Sequence[Path] = (),
) -> None:
    """Write a file under a temporary name, push it to the disk, and only then give it its name.

    Args:
        path: Its name.
        data: All of it, or its parts in order.
        advice: What the user can do where it cannot be written.
        older: Names that the file of that name moves on to, each in turn.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; an older file stays as it was.
    """
    target, temporary = staging(path)
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    with refusal_told(path, temporary, advice):
        if temporary == target:
            with target.open("wb") as stream:
                stream.writelines(parts)
            return
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        for newer, old in reversed(list(pairwise([target, *older]))):
            if newer.exists():
                newer.replace(old)
        temporary.replace(target)


class GrowingFile:
    """A text file that grows by whole lines; what a full disk refuses waits for the next time.

    Args:
        path: Its name; what it holds stays.
        advice: What the user can do where it cannot be written.
    """

    def __init__(self, path: Path, advice: str = FREE_SPACE) -> None:
        self.path, self._advice, self._waiting = path, advice, b""
        self._size = path.stat().st_size if path.exists() else 0

    def add(self, line: str) -> None:
        """Take a line; `write` brings it to the disk."""
        self._waiting += line.encode(errors="backslashreplace") + b"\n"

    def write(self) -> None:
        """Write the lines that wait.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the lines wait on.
        """
        with refusal_told(self.path, None, self._advice), self.path.open("ab") as file:
            if file.tell() > self._size:  # half a line, of a time when the disk was full
                file.truncate(self._size)
            file.write(self._waiting)
            file.flush()
            self._size, self._waiting = file.tell(), b""

    def cut(self, wanted: Callable[[bytes], bool]) -> None:
        """Leave out all that comes after the last line that is wanted; half a line never is.

        Raises:
            CheckpointError: The file cannot be read or written.
        """
        if not self.path.exists():
            return
        with refusal_told(self.path, None, self._advice), self.path.open("r+b") as file:
            end = 0
            for line in iter(file.readline, b""):
                end = file.tell() if line.endswith(b"\n") and wanted(line) else end
            file.truncate(end)
            self._size = end

    def sync(self) -> None:
        """Push what was written to the disk, so that it outlives the machine.

        Raises:
            CheckpointError: The disk is full.
        """
        if self.path.exists():
            with refusal_told(self.path, None, self._advice), self.path.open("rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def refusal_told(path: Path, temporary: Path | None, advice: str = FREE_SPACE) -> Iterator[None]:
    """Turn the system's refusal to write a file into one line, and leave no temporary file, where there is one.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save raises its own over it
        if not isinstance(reason, OSError):
            raise
        with contextlib.suppress(OSError):
            if temporary is not None and temporary.is_file():  # not a device or a pipe, which is written to as it is
                temporary.unlink()
        kept = "; the file of that name is as it was" if temporary is not None and os.access(path, os.F_OK) else ""
        raise CheckpointError(f"{path}: cannot be written ({reason.strerror}){kept}; {advice}") from error


def staging(path: Path) -> tuple[Path, Path]:
    """Return the file that a path leads to, and where to write it first: the same for a device or a pipe."""
    target = path.resolve()
    try:
        is_stream = target.is_char_device() or target.is_fifo()
    except OSError:  # it may not be looked at, and writing will say why
        is_stream = False
    return target, target if is_stream else target.with_name(f".{target.name}.{os.getpid()}.tmp")
