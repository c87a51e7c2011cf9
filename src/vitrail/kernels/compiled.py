"""Compile the C++ of a kernel once on the machine that runs it, for its processor, and load it.

What was compiled is kept in the user's cache by source, processor and torch, so that it is used
where there is no compiler any more. Nothing here is needed: without one, networks compute in plain
PyTorch.
Why it is compiled there, and not shipped in wheels: docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from vitrail.errors import ConfigError, shorten

VARIABLE = "VITRAIL_KERNELS"
"""Environment variable: `plain` leaves everything to PyTorch, `auto` is the default."""
FLAGS = (
    "-O3",
    "-std=c++17",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
COMPILE_TIMEOUT_S = 120
UNFINISHED = "compiling-"
"""How the names of folders begin in which a kernel is compiled, beside those that are kept."""


class NotCompiled(Exception):
    """A kernel cannot be compiled or used here; the message says why."""


def are_kernels_wanted() -> bool:
    """Say whether the user leaves kernels on.

    Raises:
        ConfigError: The environment variable is neither auto nor plain.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "plain"):
        raise ConfigError(
            f"{VARIABLE} is {shorten(wanted)}; it must be auto, or plain for PyTorch alone"
        )
    return wanted == "auto"


@cache
def load(name: str) -> ctypes.CDLL | None:
    """Return a kernel that was compiled before; None where there is none, or none is wanted."""
    if not are_kernels_wanted():
        return None
    with suppress(NotCompiled, OSError):
        return load_kept(locate(name))
    return None


def load_kept(path: Path) -> ctypes.CDLL | None:
    """Load a compiled kernel that is kept; None where there is none, it is damaged, or others could write it.

    Raises:
        OSError: Its folder cannot be read.
    """
    if not path.is_file() or not (is_own(path) and is_own(path.parent)):
        return None
    with suppress(OSError):  # a loader's, of a file that is no whole library
        return ctypes.CDLL(str(path))
    return None


def compile_kernel(name: str, check: Callable[[ctypes.CDLL], None]) -> None:
    """Compile a kernel, unless one is there already that can be loaded.

    Args:
        name: Name of its C++ file beside this one.
        check: Raises NotCompiled where the library's numbers are wrong.

    Raises:
        ConfigError: See `are_kernels_wanted`.
        NotCompiled: It cannot be compiled or kept, or its numbers are wrong.
    """
    if not are_kernels_wanted():
        raise NotCompiled(f"{VARIABLE}=plain turns it off")
    path = locate(name)
    try:
        if load_kept(path) is not None:
            load.cache_clear()  # another process may have compiled it since it was looked for
            return
        words = find_compiler()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_folder(path.parent)
        remove_stale(path.parent)
        # each process compiles for itself, and the last one's file is as good as the first one's
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
            library = Path(folder) / path.name
            run_compiler([*words, *FLAGS, str(source(name)), "-o", str(library)])
            check(load_new(library))
            library.chmod(0o700)  # whatever the umask says of a compiler's files
            library.replace(path)
    except OSError as error:
        raise NotCompiled(
            f"{path.parent} cannot be written ({error.strerror or shorten(str(error))})"
        ) from error
    load.cache_clear()


def prepare(name: str, check: Callable[[ctypes.CDLL], None]) -> str | None:
    """Compile a kernel as `compile_kernel` does; return why it cannot be used, if so."""
    try:
        compile_kernel(name, check)
    except NotCompiled as error:
        return str(error)
    return None


def check_folder(folder: Path) -> None:
    """Refuse a folder for compiled kernels that others can write, or that no program is run from.

    Raises:
        NotCompiled: It is one.
    """
    if not is_own(folder):
        raise NotCompiled(
            f"{folder} can be written by others, who could have it run their code; make "
            "it yours alone (chown, chmod 700), or set XDG_CACHE_HOME to another folder"
        )
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise NotCompiled(
            f"{folder} is on a file system that runs no programs (mounted noexec); set "
            "XDG_CACHE_HOME to a folder on another"
        )


def remove_stale(folder: Path) -> None:
    """Remove what compilations that were killed have left in a folder."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process has removed it
            if time.time() - left.stat().st_mtime > 2 * COMPILE_TIMEOUT_S:
                shutil.rmtree(left)


def run_compiler(words: list[str]) -> None:
    """Run a compiler.

    Raises:
        NotCompiled: It cannot be run, fails, or takes too long.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotCompiled(f"{words[0]} took more than {COMPILE_TIMEOUT_S} s") from error
    except OSError as error:
        raise NotCompiled(f"{words[0]} cannot be run ({error.strerror})") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if not lines:
            raise NotCompiled(f"{words[0]} ended with status {done.returncode} and said nothing")
        # warnings come before it, and that a linker ended with an exit status after it
        errors = [line for line in lines if "error" in line and " exit " not in line]
        first = (errors or lines)[0].removeprefix(f"{Path(__file__).parent}/")
        raise NotCompiled(f"{words[0]} failed: {shorten(first)}")


def load_new(library: Path) -> ctypes.CDLL:
    """Load what a compiler has made.

    Raises:
        NotCompiled: It made none, or one that the system does not load.
    """
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        why = shorten(str(error).removeprefix(f"{library}: "))
        raise NotCompiled(f"what the compiler made cannot be loaded ({why})") from error


def find_compiler() -> list[str]:
    """Return the words that call the C++ compiler: those of the environment's CXX, or one that is there.

    Raises:
        NotCompiled: There is none.
    """
    asked = os.environ.get("CXX", "").strip()
    if asked:
        words = asked.split()  # such as ccache g++
        found = shutil.which(words[0])
        if found is None:
            raise NotCompiled(
                f"CXX is {shorten(asked)}, and there is no such program; unset it, or name a C++ compiler"
            )
        return [found, *words[1:]]
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return [found]
    raise NotCompiled("there is no C++ compiler; install g++")


def locate(name: str) -> Path:
    """Return where a compiled kernel is kept.

    Raises:
        NotCompiled: The system or the processor is none to compile for, or there is no place to keep it.
    """
    check_machine()
    parts = [source(name).read_text(encoding="utf-8"), *FLAGS, describe_processor()]
    parts.append(torch.__version__)
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    cache_home = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(cache_home) if cache_home else Path.home() / ".cache"
    except RuntimeError as error:
        raise NotCompiled("there is no home folder to keep it in; set XDG_CACHE_HOME") from error
    return home / "vitrail" / "kernels" / f"{name}-{digest}.so"


def check_machine() -> None:
    """Refuse machines that compiled kernels were not tried on, or are slower on.

    Raises:
        NotCompiled: This is one.
    """
    if not sys.platform.startswith("linux"):
        raise NotCompiled(f"it was not tried on {platform.system()}")
    is_narrow = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    if platform.machine() == "x86_64" and is_narrow:  # benchmarks/delivery.py has the times
        raise NotCompiled("this processor has no AVX2, without which PyTorch itself is faster")


def is_own(path: Path) -> bool:
    """Say whether nobody but this user, or the system's, may write a file or a folder."""
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022


def source(name: str) -> Path:
    """Return the C++ file of a kernel."""
    return Path(__file__).with_name(f"{name}.cpp")


@cache
def describe_processor() -> str:
    """Return the processor's name and instructions: machines that share a cache may differ in them."""
    described = [platform.machine()]
    processors = Path("/proc/cpuinfo")
    if processors.exists():
        wanted = ("model name", "flags", "Features")
        first = processors.read_text().partition("\n\n")[0]
        described += [line for line in first.splitlines() if line.startswith(wanted)]
    return "\n".join(described)
