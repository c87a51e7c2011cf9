"""Which formats are read: one fate for each in every command, whatever the file is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from support.displays import Quiet
from support.images import OTHERS
from support.serving import encoded, start
from support.tiff_files import tiff_file
from support.tiny_model import save_tiny
from vitrail.cli.app import main
from vitrail.data.folders import EXTENSIONS, scan
from vitrail.errors import DataError
from vitrail.images.formats import ENDINGS, NOT_READ, OPENED, READ
from vitrail.images.preprocess import Preprocess


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def picture(number: int = 0) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def folder(image_folder: Path) -> Path:
    """Return a folder with a picture of every format that is read, and of every ending, among the others."""
    for number, (form, endings) in enumerate(ENDINGS.items()):
        for ending in endings:
            path = image_folder / "train" / "red" / f"{form}{ending}"
            if form == "NPY":
                np.save(path, np.asarray(picture(99)))
            else:
                options = {"save_all": True, "append_images": [picture(98)]} if form == "MPO" else {}
                path.write_bytes(encoded(picture(number), form, **options))
    return image_folder


def test_every_ending_of_a_format_that_is_read_is_an_images(folder: Path) -> None:
    assert frozenset(NOT_READ).isdisjoint(EXTENSIONS)
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".avif"} <= EXTENSIONS
    found = scan(folder / "train")
    names = {Path(name.decode()).name for name in found.paths}
    assert {f"{form}{ending}" for form, endings in ENDINGS.items() for ending in endings} <= names
    assert found.notes == ()


def test_check_data_reads_them_all_and_names_those_with_anothers_ending(folder: Path, tmp_path: Path) -> None:
    for form in OPENED:
        (folder / "train" / "blue" / f"a_{form}.{'png' if form == 'JPEG' else 'jpg'}").write_bytes(
            encoded(picture(50 + len(form)), form)
        )
    run("check-data", f"data.root={folder}", "data.workers=0", "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["statistics"]["unreadable"] == 0
    assert {"AVIF", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "NPY"} == set(
        found["statistics"]["formats"]
    )
    (wrong,) = [problem for problem in found["problems"] if "the ending of another format" in problem["what"]]
    assert sorted(name for group in wrong["images"] for name in group) == sorted(
        f"train/blue/a_{form}.{'png' if form == 'JPEG' else 'jpg'}" for form in OPENED
    )


def test_what_is_not_read_gets_one_reason_in_every_command(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.check_call", lambda *words, **_: pytest.fail(f"starts {words}"))  # as Pillow does
    reasons = {}
    for number, name in enumerate(("EPS", "JPEG 2000", "ICO", "TGA", "HEIC")):
        path = image_folder / "val" / "red" / f"{number}.jpg"
        path.write_bytes(OTHERS[name])
        reasons[str(path)] = f"holds {name}, which is not read; save it as one of {READ}"
    checkpoint = save_tiny(tmp_path)
    assert run("check-data", f"data.root={image_folder}", "data.workers=0", "--output", "check") == 1
    found = json.loads(Path("check/check.json").read_text())
    for reason in reasons.values():
        (problem,) = [one for one in found["problems"] if reason in one["what"]]
        assert problem["severity"] == "error"
    run("predict", checkpoint, *reasons, "--device", "cpu", "--format", "jsonl", "--output", "rows.jsonl")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert {row["path"]: row["error"] for row in rows} == reasons
    settings = ("data.workers=0", "data.bad_files=error")
    for words in (
        ("pack", f"data.root={image_folder}", "--output", "shards", *settings),
        ("resize-data", f"data.root={image_folder}", "--output", "small", "--short-side", "16", *settings),
        ("evaluate", checkpoint, f"data.root={image_folder}", "evaluate.device=cpu", *settings),
    ):
        capsys.readouterr()
        assert run(*words) == 2, words
        assert "which is not read; save it as one of" in capsys.readouterr().err, words
    server = start(checkpoint)
    try:
        for path, reason in reasons.items():
            status, answer, _ = server.ask("POST", "/predict", Path(path).read_bytes())
            assert (status, answer["results"]) == (422, [{"error": reason}])
    finally:
        server.process.kill()


def test_images_of_formats_that_are_not_read_are_told_where_they_are_left_out(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    red = image_folder / "train" / "red"
    for name in ("1.heic", "2.HEIC", "3.jp2"):
        (red / name).write_bytes(OTHERS["HEIC"])
    (red / "notes.txt").write_text("x")
    notes = scan(image_folder / "train").notes
    assert notes == (
        f"{image_folder}/train: left out 3 images of formats that are not read (.heic, .jp2): red/1.heic, red/2.HEIC, "
        "red/3.jp2; convert them to JPEG or PNG",
        f"{image_folder}/train: ignored 1 file that is not an image: red/notes.txt",
    )
    assert run("check-data", f"data.root={image_folder}", "data.workers=0", "--output", "check") == 0
    found = json.loads(Path("check/check.json").read_text())
    (problem,) = [one for one in found["problems"] if "left out 3 images of formats" in one["what"]]
    assert (problem["severity"], problem["advice"]) == ("warning", "convert them to JPEG or PNG")
    run("predict", save_tiny(tmp_path), red, "--device", "cpu", "--format", "jsonl", "--output", "rows.jsonl")
    rows = {Path(row["path"]).name: row for row in map(json.loads, Path("rows.jsonl").read_text().splitlines())}
    for name in ("1.heic", "2.HEIC", "3.jp2"):
        assert rows[name]["error"].startswith("holds HEIC, which is not read")
    for path in red.iterdir():
        if path.suffix == ".jpg":
            path.unlink()
    with pytest.raises(DataError) as caught:
        scan(image_folder / "train")
    assert "1 of 3 class folders have no images (red); add images to them, or remove them; 3 images of formats" in str(
        caught.value
    )


def test_a_server_takes_what_predict_takes_of_a_model_of_many_channels(tmp_path: Path) -> None:
    five = np.random.default_rng(0).integers(0, 65536, (24, 30, 5))
    checkpoint = save_tiny(tmp_path, Preprocess(size=(32, 32), channels=5, bits=8, mean=(0.5,) * 5, std=(0.5,) * 5))
    files = [tiff_file(five, 16, extra=(0,) * 4), tiff_file(five, 16, planar=True), tiff_file(five, 16, pages=5)]
    server = start(checkpoint)
    try:
        answers = [server.ask("POST", "/predict", data) for data in files]
    finally:
        server.process.kill()
    assert [status for status, _, _ in answers] == [200] * 3
    first = answers[0][1]["results"]
    assert all(answer["results"] == first for _, answer, _ in answers)


@pytest.mark.thorough
def test_a_served_image_is_framed_as_predict_frames_it(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path, Preprocess(size=(32, 32), resize="letterbox"))
    file = encoded(picture().resize((400, 40)), "PNG")
    (tmp_path / "wide.png").write_bytes(file)
    expected = vitrail.predict(checkpoint, tmp_path / "wide.png", progress=False)[0]
    cut = vitrail.predict(checkpoint, tmp_path / "wide.png", settings={"preprocess.resize": "crop"}, display=Quiet())[0]
    server = start(checkpoint)
    try:
        status, answer, _ = server.ask("POST", "/predict", file)
    finally:
        server.process.kill()
    assert status == 200
    served = answer["results"][0]["topk"][0]["probability"]
    assert served == pytest.approx(expected.topk[0].probability, abs=1e-4)
    assert served != pytest.approx(cut.topk[0].probability, abs=1e-4)
