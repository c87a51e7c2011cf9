"""What the doctor sees, on this machine and on poorer ones."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from support.forked import TORCHRUN, python
from vitrail.cli.app import main
from vitrail.data.loader import find_crowding
from vitrail.training import doctor
from vitrail.training.doctor import examine

Usage = namedtuple("Usage", "total used free")


def test_every_check_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV", raising=False)
    checks = {check.name: check for check in examine(tmp_path / "not" / "yet")}
    assert len(checks) == 9
    assert all(check.found for check in checks.values())
    assert "torch 2." in checks["versions"].found
    assert "MB/s written" in checks[f"disk of {tmp_path / 'not' / 'yet'}"].found
    assert checks["network"].found == "one process; to test many: torchrun --nproc-per-node 2 -m vitrail doctor"
    assert not list(tmp_path.iterdir())


def test_what_is_bad_has_a_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**26))
    monkeypatch.setattr(doctor, "decoder_name", lambda: "pillow")
    monkeypatch.setattr(doctor, "OPEN_FILES", 2**62)
    monkeypatch.setattr(doctor, "DISK_MB_S", 0)
    fixes = {check.name: check.fix for check in examine(tmp_path)}
    assert "--shm-size=8g" in fixes["shared memory"]
    assert "vitrail[torchcodec]" in fixes["decoder"]
    assert "ulimit -n 65536" in fixes["open files"]
    assert "free space" in fixes[f"disk of {tmp_path}"]
    monkeypatch.setattr(doctor, "DISK_MB_S", 1e9)
    assert "saves will take long" in {check.name: check.fix for check in examine(tmp_path)}[f"disk of {tmp_path}"]


def test_a_folder_that_cannot_be_written_is_bad(unprivileged: Path) -> None:
    (check,) = [check for check in examine(unprivileged) if check.name.startswith("disk of")]
    assert (check.found, check.fix) == (
        "cannot be written (Permission denied)",
        "choose another with output.root=FOLDER",
    )


def test_idle_cores_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "count_usable_cores", lambda: 64)
    (check,) = [check for check in examine(tmp_path) if check.name == "cores"]
    assert check.fix == "1 process of 1 thread leave cores idle; set OMP_NUM_THREADS=64"


@pytest.mark.parametrize(("load", "told"), [(2.9, False), (13.0, True)])
def test_a_machine_under_load_is_told(load: float, told: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(doctor, "count_usable_cores", lambda: 1)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (check,) = [check for check in examine(tmp_path) if check.name == "cores"]
    assert check.found.endswith("load average 13.0 on 2 cores, which other work takes") == told
    advice = "2 threads that wait for each other take many times as long; set OMP_NUM_THREADS=1"
    assert check.fix == (advice if told else "")


def test_the_load_of_the_run_itself_is_not_held_against_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (12.0, 0.0, 0.0))
    assert find_crowding(4, on_cpu=True) == ("", "")
    advice = "training waits for its share; run less beside it, or lower data.workers where that is above 1"
    assert find_crowding(3, on_cpu=True) == ("load average 12.0 on 8 cores, which other work takes", advice)
    assert find_crowding(3, on_cpu=False)[1] == advice
    monkeypatch.delattr(os, "getloadavg")
    assert find_crowding(3, on_cpu=True) == ("", "")


def test_the_status_says_whether_all_is_good(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for fix, status in (("", 0), ("mend it", 1)):
        monkeypatch.setattr(doctor, "examine", lambda folder, fix=fix: [doctor.Check("thing", "as found", fix)])
        with pytest.raises(SystemExit) as caught:
            main(["doctor"])
        assert caught.value.code == status
        assert (fix or "good") in capsys.readouterr().out


def test_everything_is_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "doctor.json"
    with pytest.raises(SystemExit):
        main(["doctor", "--output", str(tmp_path), "--json", str(path)])
    assert f"numbers: {path}" in " ".join(capsys.readouterr().err.split())
    written = json.loads(path.read_text())
    assert written["is_fit"] == (not any(check["fix"] for check in written["checks"]))
    assert [check["name"] for check in written["checks"]][:3] == ["versions", "device", "cores"]
    assert "torch 2." in written["checks"][0]["found"]
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json", str(tmp_path)])
    assert caught.value.code == 2
    message = f"error: --json {tmp_path}: cannot be written (is a folder); choose another file"
    assert capsys.readouterr().err.splitlines() == [message]


@pytest.mark.thorough
def test_processes_measure_what_lies_between_them() -> None:
    done = python(*TORCHRUN, "--nproc-per-node", 2, "--standalone", "-m", "vitrail", "doctor")
    assert done.stdout.count("2 processes, all-reduce of 16 MiB in") == 1
    assert done.stdout.count("versions") == 1
