"""Names of files and classes that a terminal, a browser or rich would obey: shown by every command, obeyed by none."""

from pathlib import Path

import pytest

from support.forked import python
from support.runs import TINY
from vitrail.errors import escape_text

NAME = "red\x1b]0;evil\x07\x1b[31m[bold]x[b] :dog: \u202egpj\u2066\u200b\xe9"
OBEYED = set("\x1b\x07\u202e\u2066\u200b")


@pytest.fixture
def hostile_folder(image_folder: Path) -> Path:
    """Return `image_folder` with an image that cannot be read, and images and a class of a hostile name."""
    for split in ("train", "val"):
        folder = image_folder / split / "red"
        (folder / "red_0.jpg").rename(folder / f"{NAME}.jpg")
        (folder / f"{NAME}.bad.jpg").write_bytes(b"\xff\xd8\xff no image")
        folder.rename(folder.with_name(NAME))
    return image_folder


def look_through(done: object, *files: Path) -> str:
    """Return all that was shown, which nothing obeys."""
    shown = "".join(map(str, (done.stdout, done.stderr, *(file.read_text() for file in files))))  # pyright: ignore
    assert not OBEYED & set(shown)
    assert "Traceback" not in shown
    return shown


@pytest.mark.thorough
def test_a_run_and_what_is_asked_of_it_show_hostile_names(hostile_folder: Path) -> None:
    words = ("-m", "vitrail", "train", TINY, f"data.root={hostile_folder}", "output.name=run", "train.epochs=1")
    done = python(*words, cwd=hostile_folder)
    run = hostile_folder / "runs" / "run"
    assert done.returncode == 0, done.stderr
    shown = look_through(done, run / "log.txt", run / "report" / "report.html")
    assert shown.count(escape_text(NAME)) > 4
    weights = run / "best.safetensors"
    evaluated = python("-m", "vitrail", "evaluate", weights, "--report", f"{NAME}.report", cwd=hostile_folder)
    assert evaluated.returncode == 0, evaluated.stderr
    assert escape_text(NAME) in look_through(evaluated, hostile_folder / f"{NAME}.report" / "report.html")
    predicted = python("-m", "vitrail", "predict", weights, f"val/{NAME}", cwd=hostile_folder)
    assert predicted.returncode == 1, predicted.stderr
    assert look_through(predicted).count(escape_text(NAME)) > 4


def test_a_check_shows_hostile_names(hostile_folder: Path) -> None:
    done = python("-m", "vitrail", "check-data", f"data.root={hostile_folder}", cwd=hostile_folder)
    assert done.returncode == 1, done.stderr
    assert escape_text(NAME) in look_through(done, hostile_folder / "data-check" / "check.html")


@pytest.mark.parametrize(
    "words",
    [
        ("config", f"{NAME}.yaml"),
        ("config", "digits", f"{NAME}.x=1"),
        ("train", "digits", f"data.root={NAME}"),
        ("evaluate", f"{NAME}.safetensors"),
        ("predict", f"{NAME}.safetensors", "x.jpg"),
        ("predict", "x.safetensors", "x.jpg", "--output", f"{NAME}/x.json"),
        ("export", f"{NAME}.pt2", "--format", "onnx"),
        ("convert", f"{NAME}.pth", "x.pth", "--to", "timm"),
        ("models", NAME),
        ("bench", NAME),
        (NAME,),
        ("train", f"--{NAME}"),
        ("pack", f"data.root={NAME}", "--output", "x"),
        ("resize-data", f"data.root={NAME}", "--output", "x", "--short-side", "8"),
        ("check-data", f"data.root={NAME}"),
        ("serve", f"{NAME}.safetensors"),
    ],
)
def test_errors_show_hostile_names(words: tuple[str, ...], tmp_path: Path) -> None:
    done = python("-m", "vitrail", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "\\x1b" in look_through(done)
