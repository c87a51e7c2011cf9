"""What is no regular file is never opened, and what is too large is not read."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrail.files import read_regular, staging
from vitrail.images.decoding import MAX_FILE, read_image
from vitrail.images.preprocess import Preprocess


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with a pipe, a link to a device, a socket, a link to itself and a file of 4 TiB of nothing."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**42)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "is a device or a pipe, no regular file"),
        ("device", "is a device or a pipe, no regular file"),
        ("folder", "Is a directory"),
        ("socket", "No such device or address"),
        ("loop", "Too many levels of symbolic links"),
        ("large", f"has {2**42:,} bytes, and {MAX_FILE:,} are the most"),
        ("gone", "No such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_a_reason_and_no_wait(odd: Path, name: str, reason: str) -> None:
    path = odd / name
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(OSError, match=reason) as caught:
        read_image(path)
    assert caught.value.filename == str(path)
    with pytest.raises(Exception, match=reason):
        Preprocess(size=(32, 32))(path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    assert read_regular(path, 1000) == b"x" * 1000
    assert read_regular(str(path), 1001) == b"x" * 1000
    with pytest.raises(OSError, match="has 1,000 bytes, and 999 are the most"):
        read_regular(path, 999)
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 1000) == b"x" * 1000


def test_a_link_to_itself_has_a_place_to_write_to(odd: Path) -> None:
    target, temporary = staging(odd / "loop")
    assert target.parent == temporary.parent == odd
