"""The speed of the data path: what is timed, and what is said of it."""

import json
from pathlib import Path

import pytest

from support.runs import TINY
from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.training.bench_data import STAGES, advise

EVEN = {"read": 0.001, "decode": 0.004, "transform": 0.003, "collate": 0.001, "copy": 0.0}


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_command_times_every_stage_and_gives_advice(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_folder / "train" / CLASSES[0] / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert run(["bench-data", str(TINY), f"data.root={image_folder}", "--seconds", "0.1", "--json", "speed.json"]) == 0
    printed = capsys.readouterr()
    numbers = json.loads((tmp_path / "speed.json").read_text())
    assert all(numbers["ms_per_image"][stage] > 0 for stage in STAGES)
    assert numbers["loader"]["images_per_s"] > 0
    assert numbers["model"]["images_per_s"] > 0
    assert numbers["unreadable"] == 1
    assert "1 image of the sample cannot be read; `vitrail check-data` names them" in printed.err
    assert printed.out.splitlines()[-1] == numbers["advice"]
    assert not (tmp_path / "runs").exists()


def test_images_in_memory_are_not_decoded(capsys: pytest.CaptureFixture) -> None:
    assert run(["bench-data", str(TINY), "data.name=digits", "data.root=null", "--seconds", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "transform" in printed
    assert "decode " not in printed


@pytest.mark.parametrize(
    ("changed", "workers", "cores", "loader", "said"),
    [
        ({}, 4, 8, 500, "the loader prepares 500 images/s and the model takes 400: images are no bottleneck"),
        ({}, 2, 8, 200, "the model waits; this machine has 8 cores, set data.workers=4"),
        ({}, 2, 3, 200, "set data.workers=3"),
        ({}, 2, 2, 200, "of 2 cores it would take 4; decoding takes longest: "),
        ({"read": 0.1}, 2, 2, 9, "it would take 48; reading takes longest: a faster disk, or `vitrail pack`"),
        ({"transform": 0.01}, 2, 2, 100, "it would take 8; the views take longest: a lighter augment.auto_augment"),
    ],
)
def test_the_advice_is_what_would_help_most(changed: dict, workers: int, cores: int, loader: float, said: str) -> None:
    assert said in advise({**EVEN, **changed}, workers, cores, loader, model=400)


def test_it_is_refused_where_it_would_measure_nothing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["bench-data", "digits", "--seconds", "0"]) == 2
    assert "--seconds is 0.0; it must be above 0" in capsys.readouterr().err
    assert run(["bench-data", "digits", "--seconds", "x"]) == 2
    assert capsys.readouterr().err == (
        'error: Invalid value for --seconds: unable to convert "x" into float; `vitrail bench-data --help` shows its '
        "options\n"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["bench-data", "digits"]) == 2
    assert "bench-data measures one process; start it without torchrun" in capsys.readouterr().err


def test_an_image_is_not_replaced_by_the_numbers(image_folder: Path, capsys: pytest.CaptureFixture) -> None:
    for photo in (image_folder / "train" / "red" / "red_0.jpg", image_folder / "val" / "red" / "red_0.jpg"):
        before = photo.read_bytes()
        assert run(["bench-data", str(TINY), f"data.root={image_folder}", "--json", str(photo)]) == 2
        assert f"--json {photo}: is read, and would be replaced" in capsys.readouterr().err
        assert photo.read_bytes() == before
    assert run(["bench-data", str(TINY), f"data.root={image_folder}", "--json", str(image_folder)]) == 2
    assert "cannot be written (is a folder); choose another file" in capsys.readouterr().err
