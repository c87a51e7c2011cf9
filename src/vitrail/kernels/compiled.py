"""Compile the C++ of a kernel once on the machine that runs it, for its processor, and load it.

What was compiled is kept in the user's cache by source, compiler, processor and torch. Nothing here
is needed: without a compiler, networks compute in plain PyTorch.
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
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_own(path.parent):
            raise NotCompiled(
                f"{path.parent} can be written by others, who could have it run their code; make "
                "it yours alone (chown, chmod 700), or set XDG_CACHE_HOME to another folder"
            )
        # each process compiles for itself, and the last one's file is as good as the first one's
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="compiling-") as folder:
            library = Path(folder) / path.name
            run_compiler([*command(), str(source(name)), "-o", str(library)])
            check(ctypes.CDLL(str(library)))
            library.chmod(0o700)  # whatever the umask says of a compiler's files
            library.replace(path)
    except OSError as error:
        raise NotCompiled(
            f"{path.parent} cannot be written ({error.strerror or shorten(str(error))})"
        ) from error
    load.cache_clear()


def run_compiler(words: list[str]) -> None:
    """Run a compiler.

    Raises:
        NotCompiled: It fails, or takes too long.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotCompiled(f"{words[0]} took more than {COMPILE_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise NotCompiled(f"{words[0]} failed: {shorten(done.stderr.strip())}")


def command() -> list[str]:
    """Return the words of the compiler.

    Raises:
        NotCompiled: There is none, or the system or the processor is none to compile for.
    """
    if not sys.platform.startswith("linux"):
        raise NotCompiled(f"it was not tried on {platform.system()}")
    is_narrow = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    if platform.machine() == "x86_64" and is_narrow:  # benchmarks/delivery.py has the times
        raise NotCompiled("this processor has no AVX2, without which PyTorch itself is faster")
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise NotCompiled("there is no C++ compiler; install g++")
    return [found, *FLAGS]


def locate(name: str) -> Path:
    """Return where a compiled kernel is kept.

    Raises:
        NotCompiled: There is no compiler, which its name depends on.
    """
    parts = [source(name).read_text(), *command(), version_of_compiler(), describe_processor()]
    parts.append(torch.__version__)
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vitrail" / "kernels" / f"{name}-{digest}.so"


def is_own(path: Path) -> bool:
    """Say whether nobody but this user, or the system's, may write a file or a folder."""
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022


def source(name: str) -> Path:
    """Return the C++ file of a kernel."""
    return Path(__file__).with_name(f"{name}.cpp")


@cache
def version_of_compiler() -> str:
    """Return what the compiler says of its version."""
    words = [command()[0], "-dumpfullversion", "-dumpversion", "-dumpmachine"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


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
