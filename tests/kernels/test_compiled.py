"""What is compiled on the machine: once, checked, kept where nobody else writes; and said why where it is not."""

import ctypes
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    compiled.version_of_compiler.cache_clear()
    yield
    load.cache_clear()
    compiled.version_of_compiler.cache_clear()


def write_compiler(folder: Path, script: str) -> str:
    """Write a program that stands for a compiler, and return its path."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


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
    script = 'case "$1" in -dump*) exit 0;; esac; echo "error: no space in /tmp" >&2; exit 1'
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    assert prepare_word_block() == f"{tmp_path}/compiler failed: 'error: no space in /tmp'"
    assert not list((tmp_path / "cache" / "vitrail" / "kernels").iterdir())


def test_a_compiler_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'case "$1" in -dump*) exit 0;; esac; exec sleep 60'
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    monkeypatch.setattr(compiled, "COMPILE_TIMEOUT_S", 0.2)
    assert prepare_word_block() == f"{tmp_path}/compiler took more than 0.2 s"


def test_wrong_numbers_are_not_kept() -> None:
    try:
        compiled.command()
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


def test_a_cache_that_is_a_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prepare_word_block() == f"{tmp_path}/file/vitrail/kernels cannot be written (Not a directory)"
