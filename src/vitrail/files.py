"""Safe files: written atomically, opened only if regular, never over an input; a refusal of the system is one line."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from vitrail.errors import CheckpointError, ConfigError, write_option

FREE_SPACE = "free space or choose another output.root"
"""Advice where a file of a run cannot be written."""
Buffer = bytes | bytearray | memoryview
Identity = tuple[int, int]
"""Device and inode of a file, which are the same by whatever name it is reached."""
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.tmp(?:\.old)?")
"""Name of a file or folder that is not whole yet: hidden, with the machine and the process that
write it."""


def write_whole(path: Path, data: Buffer | Iterable[Buffer], advice: str = FREE_SPACE) -> None:
    """Write a file under a temporary name, push it to the disk, and only then give it its name.

    Args:
        path: Name of the file.
        data: All of its content, or the parts in order.
        advice: What the user can do where it cannot be written.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; an older file stays as it
            was.
    """
    target, temporary = staging(path)
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    with refusal_told(path, temporary, advice):
        if temporary == target:
            with open(target, "wb", opener=opener) as stream:
                stream.writelines(parts)
            return
        remove_leftovers(target)
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


class GrowingFile:
    """A text file that grows by whole lines; what a full disk refuses waits for the next time.

    Args:
        path: Name of the file; what it holds stays.
        advice: What the user can do where it cannot be written.
    """

    def __init__(self, path: Path, advice: str = FREE_SPACE) -> None:
        self.path = path
        self._advice = advice
        self._waiting = b""
        self._size = path.stat().st_size if path.exists() else 0

    def add(self, line: str) -> None:
        """Take a line; `write` brings it to the disk."""
        self._waiting += line.encode(errors="backslashreplace") + b"\n"

    def write(self) -> None:
        """Write the lines that wait.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the lines wait on.
        """
        with (
            refusal_told(self.path, None, self._advice),
            open(self.path, "ab", opener=opener) as file,
        ):
            # half a line, of a time when the disk was full
            if file.tell() > self._size:
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
                if line.endswith(b"\n") and wanted(line):
                    end = file.tell()
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
        CheckpointError: The disk is full, the folder cannot be written or a file is in its place.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises its own over it
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        with contextlib.suppress(OSError):
            # not a device or a pipe, which is written to as it is
            if temporary is not None and temporary.is_file():
                temporary.unlink()
        if isinstance(reason, FileExistsError):
            raise CheckpointError(
                f"{path}: is a file, and a folder is wanted there; name another"
            ) from error
        kept = ""
        if temporary is not None and os.access(path, os.F_OK):
            kept = "; the file of that name is as it was"
        raise CheckpointError(
            f"{path}: cannot be written ({reason.strerror}){kept}; {advice}"
        ) from error


def staging(path: Path) -> tuple[Path, Path]:
    """Return the file that a path leads to, and where to write it first: the same for a device or a pipe."""
    try:
        is_stream = path.is_char_device() or path.is_fifo()
    except OSError:  # it may not be looked at, and writing will say why
        is_stream = False
    if is_stream:  # what /dev/stdout is may have no name of its own
        return path, path
    target = Path(os.path.realpath(path))  # Path.resolve raises for a link to itself
    return target, temporary_name(target)


def opener(path: str, flags: int) -> int:
    """Open a file to be written, as the opener of Python's `open`: a pipe without a reader is not waited for.

    Raises:
        OSError: It is such a pipe, or cannot be opened.
    """
    try:
        number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO and Path(path).is_fifo():
            raise OSError(errno.ENXIO, "a pipe that no process reads", path) from error
        raise
    os.set_blocking(number, True)
    return number


def temporary_name(target: Path) -> Path:
    """Return where this process writes a file or a folder until it is whole: beside its place, hidden."""
    return target.with_name(f".{target.name}.{_host()}-{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Say whether a name is one that `temporary_name` gives, in any process."""
    return TEMPORARY.fullmatch(path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Say whether a temporary file or folder is of a process of this machine that has ended; others are not judged."""
    name = TEMPORARY.fullmatch(path.name)
    if name is None or name[1] != _host():
        return False
    try:
        os.kill(int(name[2]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def leftovers(target: Path) -> list[Path]:
    """Return what ended processes of this machine left beside a file or folder that they did not finish."""
    # none where it may not look
    names = glob.glob(f".{glob.escape(target.name)}.*.tmp*", root_dir=target.parent)
    temporaries = [target.parent / name for name in sorted(names)]
    return [path for path in temporaries if is_abandoned(path)]


def remove_leftovers(target: Path) -> None:
    """Remove what ended processes of this machine left beside a file or folder that they did not finish."""
    for path in leftovers(target):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _host() -> str:
    """Return eight digits for the name of this machine: other machines see the same folders, with other processes."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


MISSING = "is missing"
"""What `describe_absent` says where there is nothing."""


def is_there(path: str | Path) -> bool:
    """Say whether there is anything at a path, a broken link not counted.

    Raises:
        OSError: It may not be looked at, or is too long to be a path; from Python 3.14 on,
            `Path.exists` and `Path.is_file` are then False.
    """
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a zero byte is a ValueError
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # links that lead to each other
            return False
        raise
    return True


def describe_absent(path: str | Path) -> str:
    """Say why there is neither a file nor a folder: nothing is there, or a broken link, a pipe or a device.

    Nothing is said of what may not be looked at.
    """
    try:
        odd = no_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return ""
    except ValueError:  # raised for a zero byte alone
        return "is no path, as it holds a zero byte"
    return f"is {odd}, no regular file" if odd else ""


def refuse_output(option: str, path: Path, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a file that cannot be written, or that is one of those that are read, before any work is done for it.

    Args:
        option: Option that names the file, as Python has it.
        path: The file to be written.
        inputs: Files that are read; those that are not there do not count.

    Raises:
        ConfigError: With what to change.
    """
    if path.is_dir():
        where = write_option(option, path)
        raise ConfigError(f"{where}: cannot be written (is a folder); choose another file")
    target, temporary = staging(path)
    folder = target.parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        where = write_option(option, path)
        raise ConfigError(f"{where}: there is no folder {folder}; create or choose another")
    # a new file takes the place of the older one, unless that is a device or a pipe
    needed: list[Path] = []
    if target != temporary:
        needed.append(target.parent)
    if target.exists():
        needed.append(target)
    if not all(
        os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        for place in needed
    ):
        where = write_option(option, path)
        raise ConfigError(f"{where}: cannot be written (Permission denied); choose another file")
    refuse_replacing(option, path, inputs)


def refuse_replacing(option: str, path: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over a file that is read, by whatever name or link.

    Raises:
        ConfigError: With what to change.
    """
    target, temporary = staging(path)
    output = _identity_if_there(target)
    if target == temporary or output is None:  # nothing is there that could be replaced
        return
    for given in inputs:
        if _identity_if_there(given) == output:
            also = "" if str(given) == str(path) else f" is {given}, which"
            where = write_option(option, path)
            raise ConfigError(f"{where}:{also} is read, and would be replaced; choose another file")


def refuse_within(option: str, path: Path, other: str, folder: Path) -> None:
    """Refuse to write into a folder of which every file means something to whoever reads it.

    Raises:
        ConfigError: With what to change.
    """
    # Path.resolve raises for a link to itself
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        where = write_option(option, path)
        raise ConfigError(
            f"{where}: lies in {write_option(other, folder)}, which holds answers alone; choose "
            "another place"
        )


def read_regular(path: str | Path, most: int) -> bytes:
    """Read a file that is no device, pipe or socket, which might never end or hold up whoever opens it.

    Args:
        path: Name of the file; links are followed.
        most: Bytes that it may have at most.

    Raises:
        OSError: It is not there, may not be read, is something else than a file, or is larger.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, and {most:,} are the most", str(path))
        return file.read()


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file to be read, and nothing but a file: no device, pipe or socket.

    Raises:
        OSError: It is not there, may not be read, or is something else than a file.
    """
    return os.fdopen(number_of_regular(path), "rb")


def number_of_regular(path: str | Path) -> int:
    """Open a file to be read, and nothing but a file, and return its file descriptor.

    Raises:
        OSError: It is not there, may not be read, or is something else than a file.
    """
    # a pipe would otherwise wait for whoever writes to it
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return number
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is a device or a pipe, no regular file", str(path))


def files_of(given: str | Path) -> list[Path]:
    """Return the files of a weight file or an exported file, which may be a folder or have its weights beside it."""
    path = Path(given)
    if path.is_dir():
        return sorted(path.iterdir())
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def identity(path: str | Path) -> Identity:
    """Return what identifies a file or folder, by whatever name it is reached.

    Raises:
        OSError: It is not there, or may not be looked at.
    """
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _identity_if_there(path: str | Path) -> Identity | None:
    """Return what identifies a file or folder; None where there is none."""
    try:
        return identity(path)
    except (OSError, ValueError):  # not there, or no path at all
        return None


NO_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
"""Kinds of what is neither a folder nor a regular file, and may block whoever opens it."""

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of the system for a link that leads to nothing."""


def no_file(path: str | Path) -> str:
    """Say what something is that is neither a folder nor a regular file; nothing for what is one of them.

    Raises:
        OSError: It is not there, or may not be looked at.
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno not in NOWHERE or not Path(path).is_symlink():
            raise
        return "a broken link"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return NO_FILES.get(stat.S_IFMT(mode), "something of another kind")
