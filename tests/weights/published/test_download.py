"""Download over HTTP from a real server that cuts, refuses, redirects, keeps silent and sends too much."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from support.displays import Notebook
from support.weights_server import Served, Server, serving
from vitrail.display import Quiet
from vitrail.errors import CheckpointError
from vitrail.weights.published.download import (
    SHOWN_EVERY_S,
    Limits,
    NotDownloaded,
    Received,
    download,
    hide_secrets,
)

DATA = b"".join(number.to_bytes(4, "big") for number in range(800_000))  # 3.2 MB
QUICK = Limits(wait_s=0.01, timeout_s=5)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/w.pth": Served(DATA)}) as told:
        yield told


def fetched(server: Server, part: Path, limits: Limits = QUICK) -> bytes:
    download(f"{server.url}/w.pth", part, label="w", display=Quiet(), limits=limits)
    return part.read_bytes()


def refusal(server: Server, part: Path, limits: Limits = QUICK) -> str:
    with pytest.raises(NotDownloaded) as caught:
        fetched(server, part, limits)
    return str(caught.value)


def test_file_arrives_whole_into_a_folder_that_was_not_there(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path / "new" / "w.part") == DATA
    assert server.asked("/w.pth") == [""]


def test_cut_connection_is_gone_on_with_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["cut 1000000", "cut 700000"]
    told = Notebook()
    download(f"{server.url}/w.pth", tmp_path / "w.part", label="w", display=told, limits=QUICK)
    assert (tmp_path / "w.part").read_bytes() == DATA
    assert server.asked("/w.pth") == ["", "bytes=1000000-", "bytes=1700000-"]
    assert told.notes[0] == "w: the connection was cut after 1,000,000 of 3,200,000 bytes; trying again"


def test_connection_that_breaks_takes_nothing_of_what_came(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["reset 300000", "reset 70000"]
    told = Notebook()
    download(f"{server.url}/w.pth", tmp_path / "w.part", label="w", display=told, limits=QUICK)
    assert (tmp_path / "w.part").read_bytes() == DATA
    assert server.asked("/w.pth") == ["", "bytes=300000-", "bytes=370000-"]
    assert told.notes == ["w: Connection reset by peer; trying again"] * 2


def test_speed_of_a_trickle_is_shown() -> None:
    shown: list[tuple[int, str]] = []

    class Shown(Quiet):
        def advance(self, steps: int = 1, **values: str) -> None:
            shown.append((steps, values["speed"]))

    received = Received(Shown(), "w", 10_000_000)
    received.add(5_000)
    assert shown == []
    time.sleep(SHOWN_EVERY_S)
    received.add(5_000)
    ((steps, speed),) = shown
    assert steps == 0
    assert 0 < float(speed.removesuffix(" MB/s")) <= 0.02


def test_progress_counts_megabytes_and_begins_where_it_stopped(server: Server, tmp_path: Path) -> None:
    class Counting(Quiet):
        shown: ClassVar[list[tuple[str, int | None, int]]] = []

        def begin(self, label: str, total: int | None, done: int = 0) -> None:
            self.shown.append((label, total, done))

        def advance(self, steps: int = 1, **values: str) -> None:
            label, total, done = self.shown.pop()
            self.shown.append((label, total, done + steps))
            assert values["speed"].endswith(" MB/s")

    server.files["/w.pth"].answers = ["cut 1500000"]
    download(f"{server.url}/w.pth", tmp_path / "w.part", label="w", display=Counting(), limits=QUICK)
    assert Counting.shown == [("fetch w, MB", 3, 1), ("fetch w, MB", 3, 3)]


def test_later_process_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    part, once = tmp_path / "w.part", Limits(tries=1)
    server.files["/w.pth"].answers = ["cut 1000000"]
    assert refusal(server, part, once) == "the connection was cut after 1,000,000 of 3,200,000 bytes, 1 times in a row"
    assert fetched(server, part) == DATA
    assert server.asked("/w.pth")[-1] == "bytes=1000000-"


def test_whole_part_of_an_earlier_process_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path / "w.part") == fetched(server, tmp_path / "w.part") == DATA
    assert server.asked("/w.pth") == ["", "bytes=3200000-"]


@pytest.mark.parametrize("how", ["changed", "no ranges", "no etag", "shorter", "another address"])
def test_part_of_what_is_no_longer_the_same_file_is_begun_anew(server: Server, tmp_path: Path, how: str) -> None:
    served, part = server.files["/w.pth"], tmp_path / "w.part"
    if how == "no etag":
        served.etag = None
    served.answers = ["cut 1000000"]
    refusal(server, part, Limits(tries=1))
    if how == "changed":
        served.data, served.etag = DATA[::-1], '"second"'
    if how == "shorter":
        served.data = DATA[:900_000]
    if how == "no ranges":
        served.ranges = False
    if how == "another address":
        server.files["/w.pth"].data = b"x"
        server.files["/other"] = served = Served(DATA)
        download(f"{server.url}/other", part, label="w", display=Quiet(), limits=QUICK)
        assert part.read_bytes() == DATA
        return
    assert fetched(server, part) == served.data


def test_server_without_parts_that_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    served = server.files["/w.pth"]
    served.ranges, served.answers = False, ["cut 1000"] * 9
    assert "cut after 1,000 of 3,200,000 bytes, 5 times in a row" in refusal(server, tmp_path / "w.part")
    assert len(server.asked("/w.pth")) == 5


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (410, "Gone")])
def test_refusal_is_told_at_once(server: Server, tmp_path: Path, status: int, reason: str) -> None:
    server.files["/w.pth"].answers = [status] * 9
    assert refusal(server, tmp_path / "w.part") == f"the server answers {status} {reason}"
    assert len(server.requests) == 1
    assert not (tmp_path / "w.part").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.files["/w.pth"].answers = [status, status]
    assert fetched(server, tmp_path / "w.part") == DATA


def test_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["/cdn/w?signed=secret"]
    server.files["/cdn/w"] = Served(DATA)
    assert fetched(server, tmp_path / "w.part") == DATA


def test_redirect_in_a_circle_is_one_line(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["/other"] * 20
    server.files["/other"] = Served(b"", answers=["/w.pth"] * 20)
    wrong = "the server answers 302, and leads in a circle or to no web address"
    assert refusal(server, tmp_path / "w.part") == wrong


def test_what_is_no_address_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotDownloaded, match="can't contain control characters"):
        download("http://127.0.0.1/my weights/w", tmp_path / "w", label="w", display=Quiet(), limits=Limits(wait_s=60))


def test_credentials_and_signatures_are_hidden() -> None:
    said = "Error while downloading from https://joe:p@ss@host:80/a/b.pth?X-Sig=abc&y=1: 403 'http://h/x#f'"
    assert hide_secrets(said) == "Error while downloading from https://host:80/a/b.pth 403 'http://h/x'"
    assert hide_secrets("joe@host: no address") == "joe@host: no address"


def test_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["wait 1"] * 2
    limits = Limits(timeout_s=0.2, tries=2, wait_s=0.01)
    assert refusal(server, tmp_path / "w.part", limits) == "no answer within 0.2 s, 2 times in a row"


def test_slow_server_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].answers = ["wait 0.5"]
    assert fetched(server, tmp_path / "w.part") == DATA


def test_what_is_said_to_be_too_large_is_not_begun(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].claimed = 5 * 2**30
    wrong = "it is said to have 5,368,709,120 bytes, and 4,294,967,296 are the most"
    assert refusal(server, tmp_path / "w.part") == wrong
    assert not (tmp_path / "w.part").exists()


def test_what_becomes_too_large_is_left(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].says_length = False
    limits = Limits(most=10_000, wait_s=0.01)
    assert refusal(server, tmp_path / "w.part", limits) == "it has more than 10,000 bytes, which are the most"
    assert not list(tmp_path.iterdir())


def test_length_that_is_not_said_does_no_harm(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"].says_length = False
    assert fetched(server, tmp_path / "w.part") == DATA


def test_end_that_may_be_a_cut_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    served = server.files["/w.pth"]
    served.says_length, served.answers = False, ["cut 1000000"]
    told = Notebook()

    def is_whole(part: Path) -> bool:
        return part.stat().st_size == len(DATA)

    part = tmp_path / "w.part"
    download(f"{server.url}/w.pth", part, label="w", display=told, limits=QUICK, is_whole=is_whole)
    assert part.read_bytes() == DATA
    assert told.notes == [
        "w: it ended after 1,000,000 bytes, which are not the whole file, and the server does not say its length; "
        "trying again"
    ]
    assert server.asked("/w.pth") == ["", "bytes=1000000-"]


def test_nobody_at_the_address_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/w"
    with pytest.raises(NotDownloaded, match="Connection refused, 2 times in a row"):
        download(address, tmp_path / "w", label="w", display=Quiet(), limits=Limits(tries=2, wait_s=0.01))


def test_full_disk_is_one_line_and_what_came_is_gone_on_with(
    server: Server, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    part = tmp_path / "w.part"
    with (
        largest_file(1_500_000),
        pytest.raises(CheckpointError, match=r"w\.part: cannot be written \(File too large\)"),
    ):
        fetched(server, part)
    assert fetched(server, part) == DATA
    assert server.asked("/w.pth")[-1].startswith("bytes=1")


def test_folder_that_cannot_be_written_is_one_line(server: Server, unprivileged: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\); free space, or point TORCH_H"):
        fetched(server, unprivileged / "w.part")
