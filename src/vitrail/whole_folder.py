"""A folder of files that appears whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path

from vitrail.errors import CheckpointError

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What the system says of a name that something else has."""


def numbered(folder: Path) -> Iterator[Path]:
    """Yield a folder's name, then with -2, -3 and so on."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


class WholeFolder:
    """A folder in the making.

    Args:
        folder: Where it is wanted.
        own: Names of its files. A folder that holds nothing but these is an earlier one, and may be replaced.
        advice: What the user can do where it cannot be written.
        never_replace: Take the next number that is free instead.
    """

    def __init__(self, folder: Path, own: Collection[str], advice: str, *, never_replace: bool = False) -> None:
        self._folder, self._own, self._advice, self._never_replace = folder, own, advice, never_replace
        self._staging = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.tmp")

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """Make the temporary folder, so that what hinders it is known early; whatever happens, leave none.

        What is too big for `publish` may be written to it before.

        Raises:
            CheckpointError: The place cannot be written, or holds files that are not its own.
        """
        if not self._never_replace:
            self._earlier()
        try:
            with self.refusal_told():
                self._staging.parent.mkdir(parents=True, exist_ok=True)
                self._staging.mkdir()
            yield self._staging
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def earlier_files(self) -> list[Path]:
        """Return the files that are there and would be replaced."""
        if self._never_replace or not self._earlier():
            return []
        return [self._folder / name for name in sorted(os.listdir(self._folder))]

    def publish(self, files: Mapping[str, bytes]) -> tuple[Path, bool]:
        """Write all files and give the folder its name; return it, and whether an earlier one was replaced.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written; an earlier one stays as it was.
        """
        with self.refusal_told():
            for name, content in files.items():
                with (self._staging / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if self._never_replace:
                return self._take_free_name(), False
            old = self._staging.with_name(f"{self._staging.name}.old")
            earlier = self._earlier()
            if earlier:  # kept until the new one has its name
                self._folder.rename(old)
            self._staging.rename(self._folder)
            shutil.rmtree(old, ignore_errors=True)
            return self._folder, earlier

    def _take_free_name(self) -> Path:
        for folder in numbered(self._folder):
            try:
                self._staging.rename(folder)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            else:
                return folder
        raise AssertionError

    def _earlier(self) -> bool:
        """Say whether the folder is there already, and refuse one that holds something else."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error(error) from error
        if others := sorted(set(names) - set(self._own)):
            raise CheckpointError(
                f"{self._folder}: holds other files, such as {others[0]}, and is not replaced; {self._advice}"
            )
        return bool(names)

    @contextlib.contextmanager
    def refusal_told(self) -> Iterator[None]:
        """Turn the system's refusal to write into one line.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self._folder}: cannot be written ({error.strerror}); {self._advice}")
