"""What is compiled on the machine: once, checked, kept where nobody else writes; and said why where it is not."""

import ctypes
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forked import wait_until
from vitrail.errors import ConfigError
from vitrail.kernels import compiled
from vitrail.kernels.compiled import NotCompiled, compile_kernel, load, locate
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.kernels.word_block_compiled import NAME, prepare_word_block


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(compiled.VARIABLE, "auto")
    load.cache_clear()
    yield
    load.cache_clear()


def write_compiler(folder: Path, script: str) -> str:
    """Write a program that stands for a compiler, and return its path."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.thorough
def test_it_is_compiled_once_and_kept() -> None:
    reason = prepare_word_block()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    path = locate(NAME)
    first = path.stat().st_mtime_ns
    assert prepare_word_block() is None
    assert path.stat().st_mtime_ns == first
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing is left behind"
    assert describe_kernels().startswith("word_block compiled for this CPU")
    path.chmod(0o666)
    load.cache_clear()
    assert load(NAME) is None, "what others could have written is not run"


@pytest.mark.thorough
def test_a_damaged_one_is_compiled_again() -> None:
    reason = prepare_word_block()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    path = locate(NAME)
    whole = path.read_bytes()
    path.unlink()  # the next one is another file, since this process has that one in its memory
    path.write_bytes(whole[:100])
    path.chmod(0o700)
    load.cache_clear()
    assert load(NAME) is None
    assert prepare_word_block() is None
    assert path.stat().st_size == len(whole)
    assert load(NAME) is not None


def test_a_folder_that_others_can_write_is_named() -> None:
    try:
        folder = locate(NAME).parent
    except NotCompiled as reason:
        pytest.skip(str(reason))
    folder.mkdir(parents=True)
    folder.chmod(0o775)
    assert prepare_word_block() == (
        f"{folder} can be written by others, who could have it run their code; make it yours alone (chown, chmod 700), "
        "or set XDG_CACHE_HOME to another folder"
    )
    assert load(NAME) is None


@pytest.mark.thorough
def test_it_is_used_whatever_the_umask() -> None:
    before = os.umask(0o002)  # of users with a group of their own, as many systems have them
    try:
        reason = prepare_word_block()
    finally:
        os.umask(before)
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    assert load(NAME) is not None


def test_plain_turns_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "plain")
    notes: list[str] = []
    prepare_kernels((NAME,), "cpu", notes.append)
    assert not notes
    assert not (tmp_path / "cache").exists()
    assert describe_kernels() == "plain PyTorch"
    assert prepare_word_block() == "VITRAIL_KERNELS=plain turns it off"


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "")
    assert compiled.are_kernels_wanted()


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "fast")
    with pytest.raises(ConfigError, match=r"^VITRAIL_KERNELS is 'fast'; it must be auto, or plain for PyTorch alone$"):
        prepare_kernels((NAME,), "cpu", print)


def test_without_a_compiler_a_note_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    notes: list[str] = []
    prepare_kernels((NAME,), "cpu", notes.append)
    assert notes == [
        "the words of TNT are computed in plain PyTorch, which is slower: there is no C++ compiler; install g++"
    ]
    prepare_kernels((), "cpu", notes.append)
    prepare_kernels((NAME,), "cuda", notes.append)
    assert len(notes) == 1, "models without words, and GPUs, need none"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86")
def test_a_processor_without_avx2_is_left_to_pytorch() -> None:
    code = "from vitrail.kernels.word_block_compiled import *; print(prepare_word_block())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "this processor has no AVX2, without which PyTorch itself is faster\n"


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'echo "error: no space in /tmp" >&2; exit 1'
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    assert prepare_word_block() == f"{tmp_path}/compiler failed: 'error: no space in /tmp'"
    assert not list((tmp_path / "cache" / "vitrail" / "kernels").iterdir())


COMPILERS = {
    "says nothing": ("exit 3", "ended with status 3 and said nothing"),
    "says what is no text": (r"printf '\377' >&2; exit 1", r"failed: '\ufffd'"),
    "cannot link": (
        "printf 'ld: No space left on device\ncollect2: error: ld returned 1 exit status\n' >&2; exit 1",
        "failed: 'ld: No space left on device'",
    ),
    "says more": ("printf 'a.cpp: In f:\na.cpp:1: error: no\nnote: 1\n' >&2; exit 1", "failed: 'a.cpp:1: error: no'"),
}


@pytest.mark.parametrize(("script", "said"), COMPILERS.values(), ids=COMPILERS.keys())
def test_a_compiler_that_fails_otherwise_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    assert prepare_word_block() == f"{tmp_path}/compiler {said}"


def test_a_compiler_that_makes_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", write_compiler(tmp_path, "exit 0"))
    reason = str(prepare_word_block())
    assert reason.startswith("what the compiler made cannot be loaded ('cannot open shared object file: No such file")


def test_a_compiler_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = Path(write_compiler(tmp_path, ""))
    path.write_text("no program")
    monkeypatch.setenv("CXX", str(path))
    assert prepare_word_block() == f"{path} cannot be run (Exec format error)"


def test_a_compiler_that_is_not_there_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "icpx -xHost")
    assert prepare_word_block() == (
        "CXX is 'icpx -xHost', and there is no such program; unset it, or name a C++ compiler"
    )


def test_a_compiler_may_be_several_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = write_compiler(tmp_path, 'echo "$1" >&2; exit 1')
    monkeypatch.setenv("CXX", f"{compiler} g++")
    assert prepare_word_block() == f"{compiler} failed: 'g++'"


@pytest.mark.thorough
def test_one_that_is_kept_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reason = prepare_word_block()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    monkeypatch.setenv("PATH", str(tmp_path))
    load.cache_clear()
    assert prepare_word_block() is None
    assert load(NAME) is not None


@pytest.mark.thorough
def test_one_that_another_process_compiled_is_found() -> None:
    assert load(NAME) is None
    code = "from vitrail.kernels.word_block_compiled import *; print(prepare_word_block())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    if done.stdout != "None\n":
        pytest.skip(f"not compiled: {done.stdout}")
    assert prepare_word_block() is None
    assert load(NAME) is not None


@pytest.mark.thorough
def test_processes_may_compile_it_at_once() -> None:
    code = "from vitrail.kernels.word_block_compiled import *; print(prepare_word_block())"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in processes}
    if said != {"None\n"}:
        pytest.skip(f"not compiled: {said}")
    assert [file.name for file in locate(NAME).parent.iterdir()] == [locate(NAME).name]
    assert load(NAME) is not None


@pytest.mark.thorough
def test_what_a_killed_process_left_is_removed_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", write_compiler(tmp_path, "echo > begun; exec sleep 60"))
    code = "from vitrail.kernels.word_block_compiled import *; prepare_word_block()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True) as process:
        wait_until((tmp_path / "begun").exists)
        os.killpg(process.pid, signal.SIGKILL)
    (left,) = locate(NAME).parent.iterdir()
    monkeypatch.delenv("CXX")
    reason = prepare_word_block()
    if reason is not None:
        pytest.skip(f"not compiled: {reason}")
    assert left.exists(), "it may be another process's, which has not ended"
    locate(NAME).unlink()
    long_ago = time.time() - 2 * compiled.COMPILE_TIMEOUT_S - 1
    os.utime(left, (long_ago, long_ago))
    assert prepare_word_block() is None
    assert [file.name for file in locate(NAME).parent.iterdir()] == [locate(NAME).name]


def test_a_compiler_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "exec sleep 60"
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    monkeypatch.setattr(compiled, "COMPILE_TIMEOUT_S", 0.2)
    assert prepare_word_block() == f"{tmp_path}/compiler took more than 0.2 s"


def test_wrong_numbers_are_not_kept() -> None:
    try:
        compiled.find_compiler()
    except NotCompiled as reason:
        pytest.skip(str(reason))

    def refuse(library: ctypes.CDLL) -> None:
        raise NotCompiled("what the compiler made of it computes wrong numbers")

    with pytest.raises(NotCompiled, match="wrong numbers"):
        compile_kernel(NAME, refuse)
    assert not locate(NAME).exists()


def test_a_cache_that_cannot_be_written_is_named(unprivileged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(unprivileged))
    assert "cannot be written (Permission denied)" in str(prepare_word_block())


def test_a_cache_that_programs_are_not_run_from_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    code = "from vitrail.kernels.word_block_compiled import *; print(prepare_word_block())"
    mount = f"mount -t tmpfs -o noexec,mode=700 tmpfs '{folder}'"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == (
        f"{folder}/vitrail/kernels is on a file system that runs no programs (mounted noexec); set XDG_CACHE_HOME to a "
        "folder on another\n"
    )


def test_without_a_home_folder_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as in a container that is run for a user who is not in it
    assert prepare_word_block() == "there is no home folder to keep it in; set XDG_CACHE_HOME"
    assert load(NAME) is None


def test_a_cache_that_is_a_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prepare_word_block() == f"{tmp_path}/file/vitrail/kernels cannot be written (Not a directory)"
