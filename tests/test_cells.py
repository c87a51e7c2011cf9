"""CSV files: nothing in them is computed by a spreadsheet, and what vitrail reads back is what it was."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.forked import python
from vitrail.cells import guard, unguard, write_rows
from vitrail.config.commands import DataConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.data.opening import open_data
from vitrail.inference.find_images import find_images
from vitrail.inference.prediction_file import open_output
from vitrail.inference.predictor import Prediction

FORMULAS = ["=1+2", "+1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\tx", "\rx", "\nx", "\uff1d1", "'=1", "''+1"]
PLAIN = ["a", "", " =1", "'", "'a", "1-2", "a@b"]


@given(st.text(alphabet="'=+-@a1 \t\r\n\uff1d"))
def test_what_is_guarded_is_no_formula_and_comes_back(text: str) -> None:
    assert unguard(guard(text)) == text
    assert not guard(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert guard(text) == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay(text: str) -> None:
    assert guard(text) == unguard(text) == text


def test_numbers_are_never_guarded() -> None:
    stream = io.StringIO(newline="")
    write_rows(stream, [["-1", -1, -0.5, None]], guarded=True)
    assert stream.getvalue() == "'-1,-1,-0.5,\n"


CLASSES = ("+one", "=sum", "@two", "-three")


@pytest.mark.parametrize("guarded", [True, False])
def test_predictions_are_read_back_as_images_and_classes(guarded: bool, tmp_path: Path) -> None:
    names = ["=cmd.jpg", "@at.jpg", "-1.jpg", "plain.jpg"] + ["'=quoted.jpg"] * guarded
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    output = tmp_path / "found.csv"
    with open_output(output, "csv", CLASSES, 1, guard_csv=guarded) as file:
        for number, name in enumerate(names):
            file.write(Prediction(name, (number % 4,), (0.5,)))
    with output.open(newline="") as stream:
        firsts = [cell[:1] for row in csv.reader(stream) for cell in row]
    assert bool(set(firsts) & set("=+-@")) != guarded
    assert [Path(path).name for path in find_images([str(output)], lambda _: None)] == names
    layer = parse_command_line([f"data.list={output}", "data.root=null", "data.label_column=name", "data.folds=2"])
    data = open_data(resolve(DataConfig, [layer]).config.data)
    assert set(data.classes) == set(CLASSES)
    read = {
        Path(part.name(index)).name: data.classes[part.labels[index]]
        for part in (data.train, data.val)
        for index in range(len(part))
    }
    assert read == {name: CLASSES[number % 4] for number, name in enumerate(names)}
    assert any("an apostrophe before = + - or @" in note for note in data.notes) == guarded


def test_a_report_and_predictions_are_guarded_unless_it_is_switched_off(
    image_folder: Path, tiny_checkpoint: Path
) -> None:
    (image_folder / "=cmd.jpg").write_bytes((image_folder / "val/red/red_0.jpg").read_bytes())
    for switch, start in ((), "'="), (("--csv-as-is",), "="):
        words = ("predict", tiny_checkpoint, "=cmd.jpg", "--output", "found.csv", *switch)
        done = python("-m", "vitrail", *words, cwd=image_folder)
        assert done.returncode == 0, done.stderr
        assert (image_folder / "found.csv").read_text().splitlines()[1].startswith(f"{start}cmd.jpg,")
