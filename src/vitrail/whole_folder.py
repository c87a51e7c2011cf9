"""A folder of files that appears whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path

from vitrail.errors import CheckpointError
from vitrail.files import leftovers, no_file, remove, temporary_name

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What the system says of a name that something else has."""
HERE, SWAP = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2."""


def numbered(folder: Path) -> Iterator[Path]:
    """Yield a folder's name, then with -2, -3 and so on."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def recover(folder: Path) -> None:
    """Undo what killed processes left half done beside a folder: put back an earlier one, remove the rest."""
    for path in leftovers(folder.absolute()):
        if path.name.endswith(".old") and not folder.exists():
            with contextlib.suppress(OSError):
                path.rename(folder)
        remove(path)


def swap(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where the system or the file system cannot, as NFS."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return (
        exchange is not None
        and exchange(HERE, os.fsencode(one), HERE, os.fsencode(other), SWAP) == 0
    )


class WholeFolder:
    """A folder in the making.

    An earlier one changes places with it at once. Where the file system cannot do that, there is
    none for a moment, and what is killed in it is put right by `recover` when the folder is written
    the next time.

    Args:
        folder: Where it is wanted.
        own: Names of its files. A folder that holds nothing but these is an earlier one, and may be
            replaced.
        advice: What the user can do where it cannot be written.
        never_replace: Take the next number that is free instead.
    """

    def __init__(
        self, folder: Path, own: Collection[str], advice: str, *, never_replace: bool = False
    ) -> None:
        self._folder, self._own, self._advice, self._never_replace = (
            folder,
            own,
            advice,
            never_replace,
        )
        self._staging = temporary_name(folder.absolute())
        # where it is not space that lacks
        self._choose_another = re.sub("^free space,? or ", "", advice)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """Make the temporary folder, so that what hinders it is known early; whatever happens, leave none.

        What is too big for `publish` may be written to it before.

        Raises:
            CheckpointError: The place cannot be written, or holds files that are not its own.
        """
        recover(self._folder)
        if not self._never_replace:
            self._earlier()
        # of a process that was killed and had the same number
        shutil.rmtree(self._staging, ignore_errors=True)
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
            CheckpointError: The disk is full, or the folder cannot be written; an earlier one stays
                as it was.
        """
        with self.refusal_told():
            for name, content in files.items():
                with (self._staging / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if self._never_replace:
                return self._take_free_name(), False
            earlier = self._earlier()
            if not earlier:
                self._staging.rename(self._folder)
            elif not swap(self._staging, self._folder.absolute()):
                self._replace()
            return self._folder, earlier

    def _replace(self) -> None:
        """Take the place of an earlier folder in two steps; what fails in between puts it back."""
        old = self._staging.with_name(f"{self._staging.name}.old")
        self._folder.rename(old)
        try:
            self._staging.rename(self._folder)
        except OSError:
            old.rename(self._folder)
            raise
        shutil.rmtree(old, ignore_errors=True)

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
        except OSError as error:
            if odd := self._other_kind():
                raise CheckpointError(
                    f"{self._folder}: is {odd}, no folder; {self._choose_another}"
                ) from error
            if isinstance(error, FileNotFoundError):
                return False
            raise self._error(error) from error
        if others := sorted(set(names) - set(self._own)):
            raise CheckpointError(
                f"{self._folder}: holds other files, such as {others[0]}, and is not replaced; "
                f"{self._advice}"
            )
        return bool(names)

    def _other_kind(self) -> str:
        """Say what has the name of the folder and is none; nothing where it is one, or nothing is there."""
        try:
            return "a file" if self._folder.is_file() else no_file(self._folder)
        except OSError:
            return ""

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
        return CheckpointError(
            f"{self._folder}: cannot be written ({error.strerror}); {self._advice}"
        )
